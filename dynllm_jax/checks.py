"""Checks of the configuration's fields, and how an error names one.

The module that reads a field checks it, with a list of rules:

    checks.check('config.train', config.train, [
      checks.at_least('chunk', 1),
      checks.one_of('loss', LOSSES),
    ])

An error has the field's full name as it stands on the command line, its value
and what is allowed, in one line: `config.train.chunk: 0 is not allowed;
allowed: 1 or more`. Of several errors each is a line (`Faults`), so that a
configuration is put right at once.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import functools
import math
from typing import Any
from typing import NamedTuple

from dynllm_jax.types import InputError

# What `recorded` collects; None while nothing is.
_recorded: dict[str, str] | None = None
_SHOWN = 80  # characters of a value in an error


class Faults(InputError):
  """Several things that are wrong, each a line of the text.

  Attributes:
    lines: what is wrong, in the order in which it was found.
  """

  def __init__(self, lines: Iterable[str]) -> None:
    self.lines = tuple(lines)
    super().__init__('\n'.join(self.lines))


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
    InputError: naming the field whose value is not allowed; `Faults` if there
      are several.
  """
  lines = []
  for rule in rules:
    name = f'{section_name}.{rule.field}'
    if _recorded is not None:
      _recorded.setdefault(name, rule.allowed)
    value = functools.reduce(getattr, rule.field.split('.'), section)
    if not _holds(rule, value):
      lines.append(str(not_allowed(name, value, rule.allowed)))
  report(lines)


def gather(checks: Iterable[Callable[[], object]]) -> None:
  """Makes all checks, and raises what is wrong at once.

  Args:
    checks: functions without arguments that raise InputError.

  Raises:
    InputError: what the one check that fails has raised, `Faults` where there
      is more.
  """
  lines: list[str] = []
  for one in checks:
    try:
      one()
    except Faults as faults:
      lines += faults.lines
    except InputError as error:
      lines.append(str(error))
  report(list(dict.fromkeys(lines)))


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, str]]:
  """What is allowed of each field that is checked meanwhile, by full name."""
  global _recorded
  before, _recorded = _recorded, {}
  try:
    yield _recorded
  finally:
    _recorded = before


def _holds(rule: Rule, value: Any) -> bool:
  """Whether a value is allowed; one of another type is not."""
  try:
    return bool(rule.holds(value))
  except (TypeError, AttributeError, ValueError, OverflowError):
    return False


def report(lines: list[str]) -> None:
  """Raises what is wrong, if anything is.

  Args:
    lines: an error each.

  Raises:
    InputError: with the one line; `Faults` with several.
  """
  if len(lines) > 1:
    raise Faults(lines)
  if lines:
    raise InputError(lines[0])


def not_allowed(field: str, value: Any, allowed: str) -> InputError:
  """The error, to be raised, about a value that is not allowed.

  Args:
    field: its full name, such as `config.data.bad_rows`.
    value: the value found.
    allowed: the values it may have, in words.
  """
  shown_value = ' '.join(repr(value).split())  # Some take several lines.
  return InputError(
    f'{field}: {shown_value} is not allowed; allowed: {allowed}'
  )


def shown(value: Any) -> str:
  """A value as an error has it: `repr`, of which a long one is cut."""
  text = repr(value)
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def at_least(field: str, least: int, note: str = '') -> Rule:
  """A number of `least` or more; `note` is added to the words."""
  return Rule(
    field,
    f'{least} or more{note}',
    lambda value: least <= value < math.inf,
  )


def above_zero(field: str) -> Rule:
  """A number above 0."""
  return Rule(field, 'a number above 0', lambda value: 0 < value < math.inf)


def fraction(field: str) -> Rule:
  """A number from 0 to 1."""
  return Rule(field, '0 to 1', lambda value: 0 <= value <= 1)


def one_of(field: str, names: Iterable[str | bool]) -> Rule:
  """One of a few words, or True or False."""
  names = tuple(names)
  return Rule(field, ', '.join(map(str, names)), lambda value: value in names)
