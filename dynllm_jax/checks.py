"""Checks of the configuration's fields, and how an error names one.

The module that reads a field checks it, with a list of rules:

    checks.check('config.train', config.train, [
      checks.at_least('chunk', 1),
      checks.one_of('loss', LOSSES),
    ])

An error has the field's full name as it stands on the command line, its value
and what is allowed, in one line: `config.train.chunk: 0 is not allowed;
allowed: 1 or more`.
"""

from collections.abc import Callable
from collections.abc import Iterable
import functools
from typing import Any
from typing import NamedTuple

from dynllm_jax.types import InputError

_SHOWN = 80  # characters of a value in an error


class Rule(NamedTuple):
  """What a field's value must be.

  Attributes:
    field: its name within the section that is checked, `a.b` in a subsection.
    allowed: the values it may have, in words, for the error.
    holds: `(value) -> bool`, whether a value is one of them.
  """

  field: str
  allowed: str
  holds: Callable[[Any], bool]


def check(section_name: str, section: Any, rules: Iterable[Rule]) -> None:
  """Checks fields of one section of the configuration.

  Args:
    section_name: its full name, such as `config.facets.writer`.
    section: its fields, an `ml_collections.ConfigDict`.
    rules: in the order in which they are checked.

  Raises:
    InputError: naming the first field whose value is not allowed.
  """
  for rule in rules:
    value = functools.reduce(getattr, rule.field.split('.'), section)
    if not rule.holds(value):
      raise not_allowed(f'{section_name}.{rule.field}', value, rule.allowed)


def not_allowed(field: str, value: Any, allowed: str) -> InputError:
  """The error, to be raised, about a value that is not allowed.

  Args:
    field: its full name, such as `config.data.bad_rows`.
    value: the value found.
    allowed: the values it may have, in words.
  """
  return InputError(f'{field}: {value!r} is not allowed; allowed: {allowed}')


def shown(value: Any) -> str:
  """A value as an error has it: `repr`, of which a long one is cut."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def at_least(field: str, least: int, note: str = '') -> Rule:
  """A number of `least` or more; `note` is added to the words."""
  return Rule(field, f'{least} or more{note}', lambda value: value >= least)


def above_zero(field: str) -> Rule:
  """A number above 0."""
  return Rule(field, 'a number above 0', lambda value: value > 0)


def fraction(field: str) -> Rule:
  """A number from 0 to 1."""
  return Rule(field, '0 to 1', lambda value: 0 <= value <= 1)


def one_of(field: str, names: Iterable[str | bool]) -> Rule:
  """One of a few words, or True or False."""
  names = tuple(names)
  return Rule(field, ', '.join(map(str, names)), lambda value: value in names)
