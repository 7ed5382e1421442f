"""Times from Arrow columns of any type, in any unit."""

import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError
from dynllm_jax.types import SECONDS_PER_DAY

TIME_UNITS = ('auto', 's', 'ms', 'us', 'ns', 'iso')
_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
_YEARS = (1990, 2100)
_FIRST, _LAST = (
  int(datetime.datetime(y, 1, 1, tzinfo=datetime.UTC).timestamp())
  for y in _YEARS
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


def parse(column: pa.ChunkedArray, unit: str, place: str) -> Times:
  """Unix seconds from unix times, ISO 8601 text, timestamps or dates.

  Times without a time zone are UTC; fractions of a second are cut off.

  With `unit='auto'` the whole column decides. It is a column of numbers or of
  ISO 8601 text, whichever most rows are. Numbers are dates (YYYYMMDD, which is
  ISO 8601 as well), or times in the one unit that puts most rows between 1990
  and 2100: the units' ranges are three orders of magnitude apart, so that no
  number fits two units.
  A column of which most rows fit no unit (seconds since some other moment,
  say) is an error, and its unit must be declared. A row outside of the
  column's range is in another unit, hence bad.

  A declared unit allows any time from 1970 to 2100, as long as it is not in
  another unit's range in a column that has times between 1990 and 2100.

  Args:
    column: the times.
    unit: one of TIME_UNITS.
    place: file and column, for messages.

  Raises:
    InputError: if the unit cannot be detected or does not fit the column.
  """
  kind = column.type

  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    if unit not in ('auto', 'iso'):
      raise InputError(
        f'{place}: config.data.time_unit is {unit!r}, but the column has '
        f"type {kind}; allowed: 'auto'"
      )
    stamps = column.cast(pa.timestamp('us'), safe=False)
    missing = pc.is_null(stamps).to_numpy()
    micros = pc.fill_null(stamps.cast(pa.int64()), 0).to_numpy()
    late = micros >= _LAST * 10**6
    return _with_negative(
      micros // 10**6,
      {'is missing': missing, f'is not before {_YEARS[1]}': late},
      'iso',
    )

  if (
    pa.types.is_integer(kind)
    or pa.types.is_floating(kind)
    or pa.types.is_decimal(kind)
  ):
    if pa.types.is_decimal(kind):
      column = column.cast(pa.float64())
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    numbers, huge = _whole(pc.fill_null(column, 0).to_numpy(), ~missing)
    return _from_numbers(
      numbers, {'is missing': missing, 'is not a time': huge}, unit, place
    )

  return _from_text(text_columns.as_text(column), unit, place)


def _from_text(encoded: pa.Array, unit: str, place: str) -> Times:
  """Times of a text column; each distinct text is parsed once."""
  if not pa.types.is_dictionary(encoded.type):
    encoded = encoded.dictionary_encode()
  # A null cell becomes one more distinct text, the empty one.
  codes = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()
  text = pa.concat_arrays(
    [encoded.dictionary, pa.array([''], encoded.dictionary.type)]
  )
  text = pc.utf8_trim_whitespace(text)

  missing = text_columns.is_missing(text)
  integer = text_columns.matches(text, _INTEGER)
  number = integer | text_columns.matches(text, _FLOAT)
  other = ~number & ~missing
  rows = np.bincount(codes, minlength=len(text))
  if unit == 'auto' and rows[other].sum() > rows[number].sum():
    unit = 'iso'

  numbers = np.zeros(len(text), np.int64)
  numbers[integer] = text.filter(pa.array(integer)).cast(pa.int64()).to_numpy()
  if unit == 'iso':
    seconds, wrong = _from_iso(text, other)
    days, dated = _from_compact_dates(numbers)
    problems = {
      'is missing': missing,
      'is not an ISO 8601 time': (number & ~dated) | wrong,
    }
    seconds = np.where(dated, days, seconds)
    return _with_negative(seconds[codes], _by_row(problems, codes), 'iso')

  real = number & ~integer
  floats = text.filter(pa.array(real)).cast(pa.float64()).to_numpy()
  huge = np.zeros(len(text), bool)
  numbers[real], huge[real] = _whole(floats, np.ones(len(floats), bool))
  problems = {'is missing': missing, 'is not a time': other | huge}
  return _from_numbers(numbers[codes], _by_row(problems, codes), unit, place)


def _by_row(
  problems: dict[str, np.ndarray], codes: np.ndarray
) -> dict[str, np.ndarray]:
  """Problems of distinct texts as problems of the rows that hold them."""
  return {reason: mask[codes] for reason, mask in problems.items()}


def _whole(
  numbers: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers rounded down to int64, and which of them do not fit."""
  if numbers.dtype.kind in 'iu' and numbers.dtype != np.uint64:
    return numbers.astype(np.int64), np.zeros(len(numbers), bool)
  numbers = np.where(present, numbers, 0).astype(np.float64)
  huge = ~(np.abs(numbers) < 2.0**63)
  return np.floor(np.where(huge, 0, numbers)).astype(np.int64), huge


def _from_numbers(
  numbers: np.ndarray, problems: dict[str, np.ndarray], unit: str, place: str
) -> Times:
  """Finds or checks the unit of numbers and turns them into seconds."""
  good = ~np.logical_or.reduce(list(problems.values()))

  seconds, dated = _from_compact_dates(numbers)
  dated &= good
  if unit == 'iso' or (unit == 'auto' and 2 * dated.sum() > good.sum()):
    problems = {**problems, 'is not an ISO 8601 time': good & ~dated}
    return _with_negative(seconds, problems, 'iso')

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
    # Without one time after 1990, all may be times of the first years.
    if inside[unit].any():
      wrong |= elsewhere

  problems = {**problems, f'is not in the unit of the column ({unit})': wrong}
  return _with_negative(numbers // _PER_SECOND[unit], problems, unit)


def _from_compact_dates(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of numbers that are dates YYYYMMDD, and which of them are.

  Dates are from 1970 to 2099; a number that is none gets 0 seconds.
  """
  year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
  dated = (year >= 1970) & (year < 2100) & (month >= 1) & (month <= 12)
  months = np.where(dated, (year - 1970) * 12 + month - 1, 0).astype('M8[M]')
  days = months.astype('M8[D]') + (day - 1)
  dated &= (day >= 1) & (days.astype('M8[M]') == months)
  return np.where(dated, days.astype(np.int64) * SECONDS_PER_DAY, 0), dated


def _from_iso(
  text: pa.Array, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of ISO 8601 texts, and which of the texts present are not ISO 8601.

  A text that is not gets 0 seconds.
  """
  text = pc.replace_substring_regex(text, r'[.,]\d+', '')
  text = pc.replace_substring_regex(text, r' ?(UTC|z)$', 'Z')
  formed = present & text_columns.matches(text, _ISO)
  zoned = formed & text_columns.matches(text, _ZONE)
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


def _with_negative(
  seconds: np.ndarray, problems: dict[str, np.ndarray], unit: str
) -> Times:
  """Adds negative times to the problems."""
  bad = np.logical_or.reduce(list(problems.values()))
  negative = ~bad & (seconds < 0)
  problems = {**problems, 'is negative (before 1970)': negative}
  return Times(np.where(bad | negative, 0, seconds), problems, unit)
