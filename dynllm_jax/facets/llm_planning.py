"""What a language model would take in calls, tokens, time and money."""

from collections.abc import Callable
import tempfile

import ml_collections
import numpy as np

from dynllm_jax.facets import language_model
from dynllm_jax.facets import llm_writing
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.types import EventLog


def plan(
  writer_config: ml_collections.ConfigDict,
  model: language_model.Model,
  log: EventLog,
  profiles: Profiles,
  folder: str,
  report: Callable[[str], None],
) -> None:
  """Reports windows, prompts, tokens, and time or cost; asks nothing.

  Args:
    writer_config: `config.facets.writer`. The time follows from
      `tokens_per_s`, input and output together, or without it from the rate
      that was last measured with the same model; the cost from
      `price_per_million_input` and `price_per_million_output`.
    model: who would be asked.
    log: the prepared log.
    profiles: the users and windows.
    folder: where stores of answers are kept, '' for none.
    report: takes the lines.
  """
  with tempfile.TemporaryDirectory() as scratch:
    # Opening a store makes it, and a plan leaves nothing behind.
    there = folder and llm_writing.store_folder(model, folder).exists()
    store = llm_writing.open_store(model, folder if there else scratch)
    work = llm_writing.survey(writer_config, model, log, profiles, store)
    rate = llm_writing.measured_rate(store)

  left = work.unfinished(writer_config.max_attempts)
  inputs = int(work.prompts.tokens[work.rows[left]].sum())
  outputs = len(left) * writer_config.max_output_tokens
  report(f'facets: {len(np.unique(profiles.closes)):,} windows')
  report(llm_writing.describe_work(writer_config, work))
  report(
    f'facets: {len(left):,} calls to come, retries aside: {inputs:,} '
    f'input tokens{"" if model.counter.exact else " (estimated)"}, at '
    f'most {outputs:,} output tokens'
  )

  stated = writer_config.tokens_per_s
  if rate := stated or rate:
    report(
      f'facets: at most {(inputs + outputs) / rate:,.0f} s at '
      f'{rate:,.0f} tokens/s, as '
      f'{"stated" if stated else "last measured"}'
    )
  else:
    report(
      'facets: no estimate of the time: config.facets.writer.tokens_per_s '
      'states no rate, and no run has measured it yet'
    )

  input_price = writer_config.price_per_million_input
  output_price = writer_config.price_per_million_output
  if input_price or output_price:
    cost = (inputs * input_price + outputs * output_price) / 1e6
    report(
      f'facets: at most {cost:,.2f} at {input_price:g} a million input and '
      f'{output_price:g} a million output tokens'
    )
