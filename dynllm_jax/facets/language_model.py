"""A language model as writers see it, and the fields of its configuration."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import types
from typing import Any
from typing import NamedTuple

import ml_collections

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import prompts

_WORDINGS = {module.VERSION: module for module in (prompts, compressed_prompts)}


class Request(NamedTuple):
  """One call.

  Attributes:
    prompt: its row among the distinct prompts.
    message: the user message.
    tokens: of the whole prompt, system message and all.
    temperature: 0 is greedy.
    seed: of sampling, from the prompt and the attempt alone, below 2^63.
  """

  prompt: int
  message: str
  tokens: int
  temperature: float
  seed: int


class Reply(NamedTuple):
  """An answer as it came, and the tokens in and out that it took."""

  text: str
  input_tokens: int
  output_tokens: int


@dataclasses.dataclass(frozen=True)
class Model:
  """A language model as the writers see it.

  Attributes:
    about: what its answers depend on besides the message, as JSON values.
    counter: how it counts tokens.
    answer: a function that answers requests in any order and yields them a
      group at a time, each with its reply, as soon as they are finished. The
      weights may be loaded when it is first called.
    speed: how fast it has been so far, in words; '' where nothing is known.
  """

  about: dict[str, Any]
  counter: prompts.Counter
  answer: Callable[[Sequence[Request]], Iterator[list[tuple[Request, Reply]]]]
  speed: Callable[[], str] = str


def settings(
  writer_config: ml_collections.ConfigDict, *fields: str
) -> dict[str, Any]:
  """The fields on which texts depend, and the prompt's version, as JSON values.

  Args:
    writer_config: `config.facets.writer`.
    *fields: names of the writer's own fields, beside those that all share.
  """
  shared = (
    'name',
    'model',
    'max_input_tokens',
    'max_output_tokens',
    'temperature',
    'seed',
    'max_attempts',
  )
  result = {
    **{name: writer_config[name] for name in (*shared, *fields)},
    'prompt_version': wording(writer_config).VERSION,
  }
  # Texts of before there was a choice are found again.
  if is_guided(writer_config):
    result['form'] = writer_config.form
  return result


def wording(writer_config: ml_collections.ConfigDict) -> types.ModuleType:
  """The module that says what is asked, by its version; see prompts.py."""
  return _WORDINGS[writer_config.prompt_version]


def messages(
  writer_config: ml_collections.ConfigDict, message: str
) -> list[dict[str, str]]:
  """A whole prompt as a chat: the system message, the examples, the message.

  Args:
    writer_config: `config.facets.writer`.
    message: the user message.
  """
  asked = wording(writer_config)
  turns = [('system', asked.SYSTEM)]
  for question, answer in asked.EXAMPLES:
    turns += [('user', question), ('assistant', answer)]
  return [
    {'role': role, 'content': content}
    for role, content in (*turns, ('user', message))
  ]


def is_guided(writer_config: ml_collections.ConfigDict) -> bool:
  """Whether the model only fills the strings of a fixed form."""
  return writer_config.form == 'guided'


def about(
  writer_config: ml_collections.ConfigDict, *fields: str
) -> dict[str, Any]:
  """What a model's answers depend on besides prompt and attempt.

  Args:
    writer_config: `config.facets.writer`.
    *fields: as in `settings`.
  """
  result = settings(writer_config, *fields)
  del result['max_input_tokens'], result['max_attempts']
  return result


# Of the fields that all writers with a language model share.
RULES = (
  checks.at_least('max_input_tokens', 1),
  checks.at_least('max_output_tokens', 1),
  Rule(
    'temperature', '0 (greedy) or more', lambda value: 0 <= value < math.inf
  ),
  checks.at_least('seed', 0),
  checks.at_least('max_attempts', 1),
  checks.one_of('form', ('free', 'guided')),
  checks.one_of('prompt_version', tuple(_WORDINGS)),
  checks.fraction('max_failure_rate'),
  checks.at_least('tokens_per_s', 0, ' (0: as last measured)'),
  checks.at_least('price_per_million_input', 0),
  checks.at_least('price_per_million_output', 0),
)


def check(writer_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that all writers with a language model share.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  named = Rule('model', 'the name of a model', bool)
  checks.check('config.facets.writer', writer_config, [named, *RULES])


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The language model in words, for reports."""
  how = (
    f'sampled at temperature {writer_config.temperature:g}, seed '
    f'{writer_config.seed}'
    if writer_config.temperature
    else 'greedy'
  )
  return (
    f'written by the language model {writer_config.model}, {how}, '
    f'prompt version {writer_config.prompt_version}, {writer_config.form} form'
  )
