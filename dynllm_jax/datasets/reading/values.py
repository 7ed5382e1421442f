"""Ids, texts and times from Arrow columns of any type."""

import datetime
from typing import Any
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.types import InputError

TIME_UNITS = ('auto', 's', 'ms', 'us', 'ns', 'iso')
_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
_YEARS = (1990, 2100)
_FIRST, _LAST = (
  int(datetime.datetime(y, 1, 1, tzinfo=datetime.UTC).timestamp())
  for y in _YEARS
)
# How missing values are written in text files, in lower case.
_MISSING = pa.array(
  ['', 'nan', 'null', 'none', 'na', 'n/a', '<na>', 'nat', '\\n']
)
_INTEGER = r'^-?\d{1,18}$'
_FLOAT = r'^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$'
_ISO = (
  r'^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])'
  r'([ T]([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d)?)?)?'
  r'(Z|[+-]\d\d(:?\d\d)?)?$'
)
_ZONE = r'[ T].*(Z|[+-]\d\d(:?\d\d)?)$'


class Times(NamedTuple):
  """Parsed times.

  Attributes:
    seconds: i64[rows], unix seconds; 0 where there is a problem.
    problems: what is wrong -> bool[rows]; a row has at most one problem.
    unit: s, ms, us, ns or iso.
  """

  seconds: np.ndarray
  problems: dict[str, np.ndarray]
  unit: str


def python_text(value: Any) -> str | None:
  """Text of a Python value, as `as_text` writes it; None stays None."""
  if value is None or value != value:
    return None
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, (list, tuple)):
    if value and isinstance(value[0], (list, tuple)):
      return python_text(value[0])  # Of several paths the first.
    texts = (python_text(part) for part in value)
    return ' > '.join(text for text in texts if text)
  return str(value)


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
  """Any column as text, null where it is null.

  Strings stay exactly as written; integers become decimal strings, and so do
  floats that are whole (17850.0 is '17850'); NaN is null; lists are joined
  with ' > ', of a list of lists the first. A dictionary of strings stays one.
  """
  if isinstance(column, pa.ChunkedArray):
    column = column.unify_dictionaries().combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Where there is more than 2 GiB.
    column = pa.concat_arrays(column.cast(pa.large_string()).chunks)
  kind = column.type
  if pa.types.is_dictionary(kind):
    if kind.value_type == pa.string():
      return column
    return as_text(column.dictionary_decode())
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return column
  if pa.types.is_floating(kind):
    whole = pc.and_(
      pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63)
    )
    integers = pc.if_else(whole, column, None).cast(pa.int64())
    integers = integers.cast(pa.string())
    present = pc.if_else(pc.is_nan(column), None, column)
    return pc.coalesce(integers, present.cast(pa.string()))
  if pa.types.is_nested(kind):
    return pa.array(map(python_text, column.to_pylist()), pa.string())
  return column.cast(pa.string())


def ids(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Ids as text, and which are missing.

  Returns:
    str[rows] (rows share one object an id) and bool[rows], True where the id
    is null, NaN, blank or spells a missing value.
  """
  encoded = as_text(column)
  if not pa.types.is_dictionary(encoded.type):
    encoded = encoded.dictionary_encode()
  names = encoded.dictionary
  blank = _is_missing(names)
  codes = pc.fill_null(encoded.indices, len(names)).to_numpy()
  table = np.append(names.to_numpy(zero_copy_only=False), '').astype(object)
  return table[codes], np.append(blank, True)[codes]


def texts(column: pa.ChunkedArray) -> np.ndarray:
  """Texts for people to read, str[rows]; '' where missing."""
  plain = as_text(column)
  if pa.types.is_dictionary(plain.type):
    plain = plain.dictionary_decode()
  plain = pc.utf8_trim_whitespace(pc.fill_null(plain, ''))
  return np.where(_is_missing(plain), '', plain.to_numpy(zero_copy_only=False))


def _is_missing(text: pa.Array) -> np.ndarray:
  lower = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(text, '')))
  return pc.is_in(lower, _MISSING.cast(lower.type)).to_numpy(
    zero_copy_only=False
  )


def times(column: pa.ChunkedArray, unit: str, place: str) -> Times:
  """Unix seconds from unix times, ISO 8601 text, timestamps or dates.

  Naive times are UTC; parts of a second are cut off. With `unit='auto'` the
  whole column decides: it is a column of numbers or of ISO 8601 text, whichever
  most rows are, and numbers are dates (YYYYMMDD, ISO 8601 too) or in the one
  unit that puts most rows between 1990 and 2100. Those ranges are three orders of magnitude apart, so no number
  fits two units, and a column of which most rows fit none (seconds since some
  other moment, say) is an error: its unit must be declared. A row outside of
  the column's range is in another unit, hence bad. A declared unit allows any
  time from 1970 to 2100, as long as it is not in another unit's range in a
  column that has times between 1990 and 2100.

  Args:
    column: the times.
    unit: one of TIME_UNITS.
    place: file and column, for messages.

  Raises:
    InputError: if the unit can not be detected or does not fit the column.
  """
  kind = column.type
  typed = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
  number = (
    pa.types.is_integer(kind)
    or pa.types.is_floating(kind)
    or pa.types.is_decimal(kind)
  )
  if typed and unit not in ('auto', 'iso'):
    raise InputError(
      f'{place}: config.data.time_unit is {unit!r}, but the column has '
      f"type {kind}; allowed: 'auto'"
    )
  if typed:
    stamps = column.cast(pa.timestamp('us'), safe=False)
    missing = pc.is_null(stamps).to_numpy()
    micros = pc.fill_null(stamps.cast(pa.int64()), 0).to_numpy()
    late = micros >= _LAST * 10**6
    return _checked(
      micros // 10**6,
      {'is missing': missing, f'is not before {_YEARS[1]}': late},
      'iso',
    )
  if number:
    if pa.types.is_decimal(kind):
      column = column.cast(pa.float64())
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    numbers, huge = _whole(pc.fill_null(column, 0).to_numpy(), ~missing)
    return _unix(
      numbers, {'is missing': missing, 'is not a time': huge}, unit, place
    )
  return _text_times(as_text(column), unit, place)


def _text_times(encoded: pa.Array, unit: str, place: str) -> Times:
  """Times of a text column; each distinct text is parsed once."""
  if not pa.types.is_dictionary(encoded.type):
    encoded = encoded.dictionary_encode()
  codes = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()
  text = pa.concat_arrays(
    [encoded.dictionary, pa.array([''], encoded.dictionary.type)]
  )
  text = pc.utf8_trim_whitespace(text)
  missing = _is_missing(text)
  integer = _matches(text, _INTEGER)
  number = integer | _matches(text, _FLOAT)
  rows = np.bincount(codes, minlength=len(text))
  other = ~number & ~missing
  if unit == 'auto' and rows[other].sum() > rows[number].sum():
    unit = 'iso'
  numbers = np.zeros(len(text), np.int64)
  numbers[integer] = text.filter(pa.array(integer)).cast(pa.int64()).to_numpy()
  if unit == 'iso':
    seconds, wrong = _iso(text, other)
    days, dated = _compact_dates(numbers)
    problems = {
      'is missing': missing,
      'is not an ISO 8601 time': (number & ~dated) | wrong,
    }
    seconds = np.where(dated, days, seconds)
    return _checked(seconds[codes], _rows(problems, codes), 'iso')
  real = number & ~integer
  floats = text.filter(pa.array(real)).cast(pa.float64()).to_numpy()
  huge = np.zeros(len(text), bool)
  numbers[real], huge[real] = _whole(floats, np.ones(len(floats), bool))
  problems = {'is missing': missing, 'is not a time': other | huge}
  return _unix(numbers[codes], _rows(problems, codes), unit, place)


def _rows(problems: dict[str, np.ndarray], codes: np.ndarray):
  return {reason: mask[codes] for reason, mask in problems.items()}


def _matches(text: pa.Array, pattern: str) -> np.ndarray:
  return pc.match_substring_regex(text, pattern).to_numpy(zero_copy_only=False)


def _whole(numbers: np.ndarray, present: np.ndarray):
  """Numbers rounded down to int64, and which of them do not fit."""
  if numbers.dtype.kind in 'iu' and numbers.dtype != np.uint64:
    return numbers.astype(np.int64), np.zeros(len(numbers), bool)
  numbers = np.where(present, numbers, 0).astype(np.float64)
  huge = ~(np.abs(numbers) < 2.0**63)
  return np.floor(np.where(huge, 0, numbers)).astype(np.int64), huge


def _unix(
  numbers: np.ndarray, problems: dict[str, np.ndarray], unit: str, place: str
) -> Times:
  """Checks unix times and turns them into seconds."""
  good = ~np.logical_or.reduce(list(problems.values()))
  seconds, dated = _compact_dates(numbers)
  dated &= good
  if unit == 'iso' or (unit == 'auto' and 2 * dated.sum() > good.sum()):
    problems = {**problems, 'is not an ISO 8601 time': good & ~dated}
    return _checked(seconds, problems, 'iso')
  inside = {
    u: good & (numbers >= _FIRST * k) & (numbers < _LAST * k)
    for u, k in _PER_SECOND.items()
  }
  if unit == 'auto':
    unit = max(_PER_SECOND, key=lambda u: inside[u].sum())
    stray = good & (numbers >= 0) & ~np.logical_or.reduce(list(inside.values()))
    if stray.sum() > inside[unit].sum():
      raise InputError(
        f'{place}: times from {numbers[stray].min()} to '
        f'{numbers[stray].max()} are no dates (YYYYMMDD) and lie in no unix '
        f'unit (s, ms, us, ns) between {_YEARS[0]} and {_YEARS[1]}; seconds '
        "since another moment need config.data.time_unit='s'"
      )
    wrong = good & (numbers >= 0) & ~inside[unit]
  else:
    elsewhere = np.logical_or.reduce(
      [mask for u, mask in inside.items() if u != unit]
    )
    wrong = good & (numbers >= _LAST * _PER_SECOND[unit])
    if inside[unit].any():
      wrong |= elsewhere
  problems = {**problems, f'is not in the unit of the column ({unit})': wrong}
  return _checked(numbers // _PER_SECOND[unit], problems, unit)


def _compact_dates(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of dates YYYYMMDD from 1970 to 2099, 0 elsewhere, and which are."""
  year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
  dated = (year >= 1970) & (year < 2100) & (month >= 1) & (month <= 12)
  months = np.where(dated, (year - 1970) * 12 + month - 1, 0).astype('M8[M]')
  days = months.astype('M8[D]') + (day - 1)
  dated &= (day >= 1) & (days.astype('M8[M]') == months)
  return np.where(dated, days.astype(np.int64) * 86_400, 0), dated


def _iso(text: pa.Array, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of ISO 8601 texts, and which of those present are not one."""
  text = pc.replace_substring_regex(text, r'[.,]\d+', '')
  text = pc.replace_substring_regex(text, r' ?(UTC|z)$', 'Z')
  formed = present & _matches(text, _ISO)
  zoned = formed & _matches(text, _ZONE)
  seconds = np.zeros(len(text), np.int64)
  wrong = present & ~formed
  for mask, kind in (
    (zoned, pa.timestamp('s', 'UTC')),
    (formed & ~zoned, pa.timestamp('s')),
  ):
    parsed = _cast_or_null(text.filter(pa.array(mask)), kind).cast(pa.int64())
    seconds[mask] = pc.fill_null(parsed, 0).to_numpy()
    wrong[mask] = pc.is_null(parsed).to_numpy(zero_copy_only=False)
  return seconds, wrong


def _cast_or_null(text: pa.Array, kind: pa.DataType) -> pa.Array:
  """Casts; a text that is no such time (February 30) becomes null.

  Arrow's cast is all or nothing, so a failing half is halved again.
  """
  try:
    return text.cast(kind)
  except pa.ArrowInvalid:
    if len(text) == 1:
      return pa.nulls(1, kind)
    half = len(text) // 2
    return pa.concat_arrays(
      [
        _cast_or_null(text.slice(0, half), kind),
        _cast_or_null(text.slice(half), kind),
      ]
    )


def _checked(
  seconds: np.ndarray, problems: dict[str, np.ndarray], unit: str
) -> Times:
  """Adds negative times to the problems."""
  bad = np.logical_or.reduce(list(problems.values()))
  negative = ~bad & (seconds < 0)
  problems = {**problems, 'is negative (before 1970)': negative}
  return Times(np.where(bad | negative, 0, seconds), problems, unit)
