"""A writer that asks an OpenAI-compatible endpoint, such as vLLM or TGI."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import math
import threading
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

# How an endpoint says that it does not: bad request, unprocessable, not
# implemented.
_NOT_TAKEN = (400, 422, 501)


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
    writer_config, _model(writer_config, report), log, profiles, store, report
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
    writer_config, _model(writer_config, report), log, profiles, store, report
  )


class _Schema:
  """Whether the endpoint takes a JSON schema for its answers.

  The first call asks with one; an endpoint that refuses it is asked without
  from then on.
  """

  def __init__(
    self, names: Sequence[str], report: Callable[[str], None]
  ) -> None:
    """Knows nothing yet.

    Args:
      names: of the strings of an answer.
      report: takes a line if the schema is refused.
    """
    self._fields = {
      'response_format': {
        'type': 'json_schema',
        'json_schema': {
          'name': 'profile',
          'strict': True,
          'schema': {
            'type': 'object',
            'properties': {name: {'type': 'string'} for name in names},
            'required': list(names),
            'additionalProperties': False,
          },
        },
      }
    }
    self._report = report
    self._lock = threading.Lock()
    self._is_taken: bool | None = None

  def ask(self, create: Callable[..., Any]) -> Any:
    """Makes a call, with the schema if that may be.

    Args:
      create: makes it, given more fields of the request.
    """
    # The others wait for what the first call shows.
    with self._lock if self._is_taken is None else contextlib.nullcontext():
      if self._is_taken is None:
        return self._try(create)
    return create(**(self._fields if self._is_taken else {}))

  def _try(self, create: Callable[..., Any]) -> Any:
    """Makes the first call that is answered."""
    import openai

    try:
      answer = create(**self._fields)
      self._is_taken = True
      return answer
    except openai.APIStatusError as error:
      if error.status_code not in _NOT_TAKEN:
        raise
      # The request itself may be bad: then this fails too.
      answer = create()
      self._is_taken = False
      self._report(
        'facets: the endpoint takes no response_format (HTTP '
        f'{error.status_code}); answers are free'
      )
      return answer


def _model(
  writer_config: ml_collections.ConfigDict, report: Callable[[str], None]
) -> language_model.Model:
  language_model.check(writer_config)
  guided = language_model.is_guided(writer_config)
  names = language_model.wording(writer_config).NAMES
  schema = _Schema(names, report) if guided else None

  @functools.cache
  def endpoint() -> Endpoint:  # one for all rounds: it counts what is spent
    return Endpoint('config.facets.writer', writer_config)

  def answer(
    requests: Sequence[Request],
  ) -> Iterator[list[tuple[Request, Reply]]]:
    answers = endpoint().run(
      requests,
      functools.partial(_call, writer_config, schema),
      lambda request: request.tokens + writer_config.max_output_tokens,
    )
    for request, reply in answers:
      if isinstance(reply, Refused):
        reply = Reply(f'refused: {reply}', 0, 0)
      yield [(request, reply)]

  return language_model.Model(
    language_model.about(writer_config),
    prompts.Counter(
      count_texts,
      functools.partial(count_prompts, writer_config),
      exact=False,
    ),
    answer,
  )


def _call(
  writer_config: ml_collections.ConfigDict,
  schema: _Schema | None,
  client: Any,
  request: Request,
) -> tuple[Reply, int]:
  """Makes one call; returns the reply and the tokens that it has cost."""
  create = functools.partial(
    client.chat.completions.create,
    model=writer_config.model,
    messages=language_model.messages(writer_config, request.message),
    temperature=request.temperature,
    seed=request.seed % 2**31,
    max_tokens=writer_config.max_output_tokens,
  )

  answer = schema.ask(create) if schema else create()
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


def count_prompts(
  writer_config: ml_collections.ConfigDict, messages: Sequence[str]
) -> list[int]:
  """Estimates the tokens of whole prompts, given their user messages."""
  turns = language_model.messages(writer_config, '')
  form = sum(count_texts([turn['content'] for turn in turns]))
  form += len(turns) * _MESSAGE_TOKENS
  return [form + size for size in count_texts(messages)]
