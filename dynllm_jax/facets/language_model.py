"""A language model as the writers see it, and the fields of its config."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

from dynllm_jax.facets import prompts
from dynllm_jax.types import InputError


class Request(NamedTuple):
  """One call."""

  prompt: int  # its place among the distinct ones
  message: str  # of the user
  tokens: int  # of the whole prompt
  temperature: float
  seed: int  # from the prompt and the attempt alone, below 2^63


class Reply(NamedTuple):
  """What came back, and the tokens that it took."""

  text: str
  input_tokens: int
  output_tokens: int


@dataclasses.dataclass(frozen=True)
class Model:
  """A language model as the writers see it.

  Attributes:
    about: what its answers depend on beside the message, as JSON values.
    counter: how it counts tokens.
    answer: answers requests in any order, a group at a time, as they are
      finished. The weights may be loaded when it is first called.
  """

  about: dict[str, Any]
  counter: prompts.Counter
  answer: Callable[[Sequence[Request]], Iterator[list[tuple[Request, Reply]]]]


def settings(writer_config: Any, *fields: str) -> dict[str, Any]:
  """The fields on which texts depend: shared ones and the writer's own."""
  shared = (
    'name',
    'model',
    'max_input_tokens',
    'max_output_tokens',
    'temperature',
    'seed',
    'max_attempts',
  )
  return {
    **{name: writer_config[name] for name in (*shared, *fields)},
    'prompt_version': prompts.VERSION,
  }


def about(writer_config: Any, *fields: str) -> dict[str, Any]:
  """What a writer's answers depend on beside prompt and attempt."""
  result = settings(writer_config, *fields)
  del result['max_input_tokens'], result['max_attempts']
  return result


def check(writer_config: Any) -> None:
  """Checks the fields that all writers with a language model share.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  rules = {
    'model': (lambda v: bool(v), 'the name of a model'),
    'max_input_tokens': (lambda v: v > 0, 'at least 1'),
    'max_output_tokens': (lambda v: v > 0, 'at least 1'),
    'temperature': (lambda v: 0 <= v < math.inf, '0 (greedy) or more'),
    'seed': (lambda v: v >= 0, 'a number from 0'),
    'max_attempts': (lambda v: v > 0, 'at least 1'),
    'max_failure_rate': (lambda v: 0 <= v <= 1, '0 to 1'),
  }
  for field, (good, allowed) in rules.items():
    if not good(writer_config[field]):
      raise InputError(
        f'facets.writer.{field}: {writer_config[field]!r} is not allowed for '
        f'the writer {writer_config.name!r}; it must be {allowed}'
      )


def describe(writer_config: Any) -> str:
  """The language model in words, for reports."""
  how = (
    f'sampled at temperature {writer_config.temperature:g}, seed '
    f'{writer_config.seed}'
    if writer_config.temperature
    else 'greedy'
  )
  return (
    f'written by the language model {writer_config.model}, {how}, '
    f'prompt version {prompts.VERSION}'
  )
