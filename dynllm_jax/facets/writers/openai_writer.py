"""A writer that asks an OpenAI-compatible endpoint, such as vLLM or TGI."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import math
from typing import Any

import ml_collections

from dynllm_jax.facets import language_model
from dynllm_jax.facets import llm_planning
from dynllm_jax.facets import llm_writing
from dynllm_jax.facets import prompts
from dynllm_jax.facets.language_model import Reply
from dynllm_jax.facets.language_model import Request
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.text.endpoint import BadAnswerError
from dynllm_jax.text.endpoint import Endpoint
from dynllm_jax.text.endpoint import Refused
from dynllm_jax.types import EventLog

VERSION = 1

# The endpoint's tokenizer is not available. English has about four bytes a
# token and Chinese about three, so that this estimate is rather too high.
_BYTES_PER_TOKEN = 3
_MESSAGE_TOKENS = 8  # that the format of a chat adds to each message


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The writer in words, for reports."""
  return f'{language_model.describe(writer_config)}, through an endpoint'


def identity(
  writer_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """What texts depend on besides the purchases: settings and the model's name.

  The server's address is not among them. Which model it serves under that name
  cannot be told from here.
  """
  del store
  language_model.check(writer_config)
  return {**language_model.settings(writer_config), 'version': VERSION}


def check(writer_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that this writer reads.

  Raises:
    InputError: naming those whose value is not allowed.
  """
  language_model.check(writer_config)


def write(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> FacetTexts:
  """Writes the facets of each profile; see `llm_writing.write`."""
  return llm_writing.write(
    writer_config, _model(writer_config), log, profiles, store, report
  )


def plan(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> None:
  """Says what writing would take; see `llm_planning.plan`."""
  llm_planning.plan(
    writer_config, _model(writer_config), log, profiles, store, report
  )


def _model(writer_config: ml_collections.ConfigDict) -> language_model.Model:
  language_model.check(writer_config)

  @functools.cache
  def endpoint() -> Endpoint:  # one for all rounds: it counts what is spent
    return Endpoint('config.facets.writer', writer_config)

  def answer(
    requests: Sequence[Request],
  ) -> Iterator[list[tuple[Request, Reply]]]:
    answers = endpoint().run(
      requests,
      functools.partial(_call, writer_config),
      lambda request: request.tokens + writer_config.max_output_tokens,
    )
    for request, reply in answers:
      if isinstance(reply, Refused):
        reply = Reply(f'refused: {reply}', 0, 0)
      yield [(request, reply)]

  return language_model.Model(
    language_model.about(writer_config),
    prompts.Counter(count_texts, count_prompts, exact=False),
    answer,
  )


def _call(
  writer_config: ml_collections.ConfigDict, client: Any, request: Request
) -> tuple[Reply, int]:
  """Makes one call; returns the reply and the tokens that it has cost."""
  answer = client.chat.completions.create(
    model=writer_config.model,
    messages=[
      {'role': 'system', 'content': prompts.SYSTEM},
      {'role': 'user', 'content': request.message},
    ],
    temperature=request.temperature,
    seed=request.seed % 2**31,
    max_tokens=writer_config.max_output_tokens,
  )
  text = answer.choices[0].message.content or ''
  if not isinstance(text, str):
    raise BadAnswerError(f'content is {type(text).__name__}, not a string')
  if answer.usage is None:
    reply = Reply(text, request.tokens, count_texts([text])[0])
  else:
    reply = Reply(
      text, answer.usage.prompt_tokens, answer.usage.completion_tokens
    )
  return reply, reply.input_tokens + reply.output_tokens


def count_texts(texts: Sequence[str]) -> list[int]:
  """Estimates how many tokens each text has."""
  sizes = (len(text.encode(errors='replace')) for text in texts)
  return [math.ceil(size / _BYTES_PER_TOKEN) for size in sizes]


def count_prompts(messages: Sequence[str]) -> list[int]:
  """Estimates the tokens of whole prompts, given their user messages."""
  form = count_texts([prompts.SYSTEM])[0] + 2 * _MESSAGE_TOKENS
  return [form + size for size in count_texts(messages)]
