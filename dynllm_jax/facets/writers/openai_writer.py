"""A writer that asks an OpenAI-compatible endpoint, such as vLLM or TGI."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import json
import math
import threading
from typing import Any
from typing import NamedTuple

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

VERSION = 2

# The endpoint's tokenizer is not available. English has about four bytes a
# token and Chinese about three, so that this estimate is rather too high.
_BYTES_PER_TOKEN = 3
_MESSAGE_TOKENS = 8  # that the format of a chat adds to each message

# How an endpoint says that it does not: bad request, unprocessable, not
# implemented; llama-cpp-python has one for all that it did not expect.
_NOT_TAKEN = (400, 422, 501)
_SERVER_ERROR = 500


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


class _Format(NamedTuple):
  """A way to ask for answers of the fixed form.

  Attributes:
    words: what it is, for reports.
    fields: of the request.
  """

  words: str
  fields: dict[str, Any]


_FREE = _Format('none: answers are free', {})


def _formats(names: Sequence[str], max_tokens: int) -> tuple[_Format, ...]:
  """Ways to ask for the fixed form, in the order in which they are tried.

  Lengths keep an answer from being cut off before its end, which is then no
  JSON; not every endpoint knows them. llama-cpp-python and others know a schema
  as a field of `json_object` alone.

  Args:
    names: of the strings of an answer.
    max_tokens: of an answer.
  """
  (form,) = count_texts([json.dumps(dict.fromkeys(names, ''))])
  room = max((max_tokens - form) // len(names), 1) * _BYTES_PER_TOKEN
  short, plain = (
    {
      'type': 'object',
      'properties': {name: {'type': 'string', **length} for name in names},
      'required': list(names),
      'additionalProperties': False,
    }
    for length in ({'maxLength': room}, {})
  )
  return (
    _Format('a JSON schema with lengths', _json_schema(short)),
    _Format('a JSON schema', _json_schema(plain)),
    _Format(
      'a JSON object with a schema',
      {'response_format': {'type': 'json_object', 'schema': short}},
    ),
  )


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
  """As OpenAI takes it."""
  about = {'name': 'profile', 'strict': True, 'schema': schema}
  return {'response_format': {'type': 'json_schema', 'json_schema': about}}


class _Form:
  """Calls that ask for the fixed form as the endpoint takes it.

  The first call tries the ways in turn; the first that is answered serves from
  then on.
  """

  def __init__(
    self, ways: Sequence[_Format], report: Callable[[str], None]
  ) -> None:
    """Knows nothing yet.

    Args:
      ways: to ask; where none is taken, answers are free.
      report: takes a line if the endpoint refuses the first.
    """
    self._ways, self._report = ways, report
    self._lock = threading.Lock()
    self._taken: dict[str, Any] | None = None

  def ask(self, create: Callable[..., Any]) -> Any:
    """Makes a call.

    Args:
      create: makes it, given more fields of the request.
    """
    # The others wait for what the first call shows.
    with self._lock if self._taken is None else contextlib.nullcontext():
      if self._taken is None:
        return self._try(create)
    return create(**self._taken)

  def _try(self, create: Callable[..., Any]) -> Any:
    """Makes the first call that is answered."""
    import openai

    why = ''
    for way in self._ways:
      try:
        answer = create(**way.fields)
        break
      except openai.APIStatusError as error:
        if not _is_refusal(error):
          raise
        why = why or f'HTTP {error.status_code}'
    else:
      # The request itself may be bad: then this fails too.
      way, answer = _FREE, create()

    if why:
      self._report(
        f'facets: the endpoint refuses {self._ways[0].words} as '
        f'response_format ({why}); it takes {way.words}'
      )
    self._taken = way.fields
    return answer


def _is_refusal(error: Any) -> bool:
  """Whether an endpoint may have said that it does not know a format."""
  return error.status_code in _NOT_TAKEN or (
    error.status_code == _SERVER_ERROR and 'response_format' in str(error)
  )


def _model(
  writer_config: ml_collections.ConfigDict, report: Callable[[str], None]
) -> language_model.Model:
  language_model.check(writer_config)
  form = None
  if language_model.is_guided(writer_config):
    names = language_model.wording(writer_config).NAMES
    ways = _formats(names, writer_config.max_output_tokens)
    form = _Form(ways, report)

  @functools.cache
  def endpoint() -> Endpoint:  # one for all rounds: it counts what is spent
    return Endpoint('config.facets.writer', writer_config)

  def answer(
    requests: Sequence[Request],
  ) -> Iterator[list[tuple[Request, Reply]]]:
    answers = endpoint().run(
      requests,
      functools.partial(_call, writer_config, form),
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
  form: _Form | None,
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

  answer = form.ask(create) if form else create()
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
