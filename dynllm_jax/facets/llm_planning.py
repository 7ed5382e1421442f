"""What asking a language model would take, said before anything is spent."""

from collections.abc import Callable
import tempfile
from typing import Any

import numpy as np

from dynllm_jax.facets import language_model
from dynllm_jax.facets import llm_writing
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.types import EventLog


def plan(
  writer_config: Any,
  model: language_model.Model,
  log: EventLog,
  profiles: Profiles,
  folder: str,
  report: Callable[[str], None],
) -> None:
  """Reports windows, prompts, tokens, and time or cost; asks nothing.

  Args:
    writer_config: `config.facets.writer`. `tokens_per_s`, input and output
      together, gives the time, or else the rate at which an earlier run of
      the same model was; `price_per_million_input` and `_output` give the
      cost.
    model: who would be asked.
    log: the prepared log.
    profiles: the users and windows.
    folder: where stores of answers are kept, '' for none.
    report: takes the lines.
  """
  with tempfile.TemporaryDirectory() as scratch:
    # A plan leaves nothing behind, an empty store neither.
    place = llm_writing.store_folder(model, folder) if folder else None
    store = llm_writing.open_store(
      model, folder if place and place.exists() else scratch
    )
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
  prices = (
    writer_config.price_per_million_input,
    writer_config.price_per_million_output,
  )
  if any(prices):
    cost = (inputs * prices[0] + outputs * prices[1]) / 1e6
    report(
      f'facets: at most {cost:,.2f} at {prices[0]:g} a million input and '
      f'{prices[1]:g} a million output tokens'
    )
