"""Times from Arrow columns of any type, in any unit."""

import datetime
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError
from dynllm_jax.types import SECONDS_PER_DAY

TIME_UNITS = ('auto', 's', 'ms', 'us', 'ns', 'iso')
_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
_NANOSECONDS = 10**9
_YEARS = (1990, 2100)
_FIRST, _LAST = (
  int(datetime.datetime(y, 1, 1, tzinfo=datetime.UTC).timestamp())
  for y in _YEARS
)
_FEW = 8  # distinct times, of which nothing can be concluded below that
_INTEGER = r'^-?\d{1,18}$'
_FLOAT = r'^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$'
_ISO = (
  r'^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])'
  r'([ T]([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d)?)?)?'
  r'(Z|[+-]\d\d(:?\d\d)?)?$'
)
_BEFORE_ZONE = r' ([+-]\d\d:?\d\d)$'  # as Ruby writes it
_ZONE = r'[ T].*(Z|[+-]\d\d(:?\d\d)?)$'


class Times(NamedTuple):
  """Parsed times.

  Attributes:
    seconds: i64[rows], unix seconds; 0 where there is a problem.
    fractions: i64[rows], nanoseconds since that second.
    problems: what is wrong -> bool[rows]; a row has at most one problem.
    unit: s, ms, us, ns or iso.
  """

  seconds: np.ndarray
  fractions: np.ndarray
  problems: dict[str, np.ndarray]
  unit: str


def parse(column: pa.ChunkedArray, unit: str, place: str) -> Times:
  """Unix seconds from unix times, ISO 8601 text, timestamps or dates.

  Times without a time zone are UTC. What is beyond a second is kept beside it.

  With `unit='auto'` the whole column decides. It is a column of numbers or of
  ISO 8601 text, whichever most rows are. Numbers are dates (YYYYMMDD, which is
  ISO 8601 as well, also with hours, minutes and seconds behind it), or times in
  the one unit that puts most rows between 1990 and 2100: the units' ranges are
  three orders of magnitude apart, so that no number fits two units. Unix times
  that went through 32-bit floats, which tell times two minutes apart at best,
  are an error; a declared unit takes them as they are.
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
    if pa.types.is_date(kind):
      column, kind = column.cast(pa.timestamp('s')), pa.timestamp('s')
    per_second = _PER_SECOND[kind.unit]
    missing = pc.is_null(column).to_numpy()
    numbers = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    late = numbers >= _LAST * per_second
    return _with_negative(
      numbers // per_second,
      numbers % per_second * (_NANOSECONDS // per_second),
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
    numbers, rest, huge = _whole(pc.fill_null(column, 0).to_numpy(), ~missing)
    problems = {'is missing': missing, 'is not a time': huge}
    coarse = kind in (pa.float16(), pa.float32())
    return _from_numbers(numbers, rest, problems, unit, place, coarse)

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
  rest = np.zeros(len(text))
  numbers[integer] = text.filter(pa.array(integer)).cast(pa.int64()).to_numpy()
  if unit == 'iso':
    seconds, fractions, wrong = _from_iso(text, other)
    days, dated = _from_compact_dates(numbers)
    problems = {
      'is missing': missing,
      'is not an ISO 8601 time': (number & ~dated) | wrong,
    }
    seconds = np.where(dated, days, seconds)
    return _with_negative(
      seconds[codes], fractions[codes], _by_row(problems, codes), 'iso'
    )

  real = number & ~integer
  floats = text.filter(pa.array(real)).cast(pa.float64()).to_numpy()
  huge = np.zeros(len(text), bool)
  present = np.ones(len(floats), bool)
  numbers[real], rest[real], huge[real] = _whole(floats, present)
  problems = {'is missing': missing, 'is not a time': other | huge}
  return _from_numbers(
    numbers[codes],
    rest[codes],
    _by_row(problems, codes),
    unit,
    place,
    coarse=_few_digits(text, number),
  )


def _few_digits(text: pa.Array, number: np.ndarray) -> bool:
  """Whether all numbers are written with an exponent and at most seven digits.

  That is how programs print 32-bit floats: 1.291192e+09.
  """
  digits = text_columns.matches(text, r'^-?\d(\.\d{0,6})?[eE]\+?\d+$')
  return bool(number.any()) and bool(digits[number].all())


def _by_row(
  problems: dict[str, np.ndarray], codes: np.ndarray
) -> dict[str, np.ndarray]:
  """Problems of distinct texts as problems of the rows that hold them."""
  return {reason: mask[codes] for reason, mask in problems.items()}


def _whole(
  numbers: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Numbers rounded down to int64, what that takes off, which do not fit."""
  if numbers.dtype.kind in 'iu' and numbers.dtype != np.uint64:
    zeros = np.zeros(len(numbers))
    return numbers.astype(np.int64), zeros, zeros.astype(bool)
  numbers = np.where(present, numbers, 0).astype(np.float64)
  huge = ~(np.abs(numbers) < 2.0**63)
  numbers = np.where(huge, 0, numbers)
  whole = np.floor(numbers)
  return whole.astype(np.int64), numbers - whole, huge


def _from_numbers(
  numbers: np.ndarray,
  rest: np.ndarray,
  problems: dict[str, np.ndarray],
  unit: str,
  place: str,
  coarse: bool,
) -> Times:
  """Finds or checks the unit of numbers and turns them into seconds.

  Args:
    numbers: i64[rows], rounded down.
    rest: f64[rows], what rounding took off.
    problems: found so far.
    unit: as in `parse`.
    place: for messages.
    coarse: whether they are known to have the digits of 32-bit floats alone.
  """
  good = ~np.logical_or.reduce(list(problems.values()))

  seconds, dated = _from_compact_dates(numbers)
  dated &= good
  if unit == 'iso' or (unit == 'auto' and 2 * dated.sum() > good.sum()):
    problems = {**problems, 'is not an ISO 8601 time': good & ~dated}
    return _with_negative(seconds, np.zeros_like(seconds), problems, 'iso')

  inside = {
    u: good & (numbers >= _FIRST * k) & (numbers < _LAST * k)
    for u, k in _PER_SECOND.items()
  }
  if unit == 'auto':
    unit = max(_PER_SECOND, key=lambda u: inside[u].sum())
    wrong = good & (numbers >= 0) & ~inside[unit]
    # A log in milliseconds that starts at 0 has most of its times, as seconds,
    # after 1990.
    early = wrong & (numbers < _FIRST)
    stray = wrong & ~np.logical_or.reduce(list(inside.values()))
    if stray.sum() > inside[unit].sum() or (
      early.sum() >= _FEW and 10 * early.sum() > good.sum()
    ):
      raise InputError(
        f'{place}: times from {numbers[good].min()} to '
        f'{numbers[good].max()} are no dates (YYYYMMDD) and lie in no unix '
        f'unit (s, ms, us, ns) between {_YEARS[0]} and {_YEARS[1]}; times '
        'since another moment, as those of a log that starts at 0, need their '
        'unit: config.data.time_unit=s'
      )
    if inside[unit].any() and (
      coarse or _went_through_floats(numbers[inside[unit]], _PER_SECOND[unit])
    ):
      raise InputError(
        f'{place}: unix times that are, or were, 32-bit floats, which hold no '
        'second of them (and make one time of many); allowed: 64-bit floats or '
        f'whole numbers (config.data.time_unit={unit} reads them as they are)'
      )
  else:
    elsewhere = np.logical_or.reduce(
      [mask for u, mask in inside.items() if u != unit]
    )
    wrong = good & (numbers >= _LAST * _PER_SECOND[unit])
    # Without one time after 1990, all may be times of the first years.
    if inside[unit].any():
      wrong |= elsewhere

  problems = {**problems, f'is not in the unit of the column ({unit})': wrong}
  per_second = _PER_SECOND[unit]
  step = _NANOSECONDS // per_second
  fractions = numbers % per_second * step + np.floor(rest * step).astype(
    np.int64
  )
  return _with_negative(numbers // per_second, fractions, problems, unit)


def _went_through_floats(numbers: np.ndarray, per_second: int) -> bool:
  """Whether all unix times are what 32-bit floats hold, or print as.

  Of a few times nothing is said, nor of whole five minutes, which may be.

  Args:
    numbers: i64[rows], above 0.
    per_second: of their unit.
  """
  # Some rows of the whole column tell as much as all.
  distinct = np.unique(numbers[:: 1 + len(numbers) // 8192])
  if len(distinct) < _FEW or not (distinct % (300 * per_second)).any():
    return False
  narrow = distinct.astype(np.float32)
  if np.spacing(narrow.max()) < per_second:
    return False
  held = narrow.astype(np.int64) == distinct
  printed = np.array([int(float(str(number))) for number in narrow]) == distinct
  return bool(held.all() or printed.all())


def _from_compact_dates(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Seconds of numbers that are dates YYYYMMDD, and which of them are.

  Two digits each of hour, minute and second may follow. Dates are from 1970 to
  2099, with hours from 1990; a number that is none gets 0 seconds.
  """
  seconds = np.zeros(len(numbers), np.int64)
  found = np.zeros(len(numbers), bool)
  for parts in range(4):
    scale = 100**parts
    span = numbers // (10_000 * scale)
    if not ((span >= 1970) & (span < 2100)).any():
      continue  # Most columns have numbers of one length.
    date, clock = numbers // scale, numbers % scale
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    since = _YEARS[0] if parts else 1970
    dated = (year >= since) & (year < 2100) & (month >= 1) & (month <= 12)
    months = np.where(dated, (year - 1970) * 12 + month - 1, 0).astype('M8[M]')
    days = months.astype('M8[D]') + (day - 1)
    dated &= (day >= 1) & (days.astype('M8[M]') == months)

    of_day = np.zeros(len(numbers), np.int64)
    for limit, worth in ((24, 3600), (60, 60), (60, 1))[:parts]:
      scale //= 100
      digits = clock // scale % 100
      dated &= digits < limit
      of_day += digits * worth
    total = days.astype(np.int64) * SECONDS_PER_DAY + of_day
    seconds = np.where(dated, total, seconds)
    found |= dated
  return seconds, found


def _from_iso(
  text: pa.Array, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Seconds of ISO 8601 texts, nanoseconds, and which are not ISO 8601.

  A text that is not gets 0 seconds.
  """
  digits = pc.struct_field(
    pc.extract_regex(text, r'[.,](?P<digits>\d+)'), 'digits'
  )
  digits = pc.utf8_slice_codeunits(pc.utf8_rpad(digits, 9, '0'), 0, 9)
  fractions = pc.fill_null(digits.cast(pa.int64()), 0).to_numpy(
    zero_copy_only=False
  )

  text = pc.replace_substring_regex(text, r'[.,]\d+', '')
  text = pc.replace_substring_regex(text, r' ?(UTC|z)$', 'Z')
  text = pc.replace_substring_regex(text, _BEFORE_ZONE, r'\1')
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
  return seconds, fractions, wrong


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
  seconds: np.ndarray,
  fractions: np.ndarray,
  problems: dict[str, np.ndarray],
  unit: str,
) -> Times:
  """Adds negative times to the problems."""
  bad = np.logical_or.reduce(list(problems.values()))
  negative = ~bad & (seconds < 0)
  problems = {**problems, 'is negative (before 1970)': negative}
  bad |= negative
  return Times(
    np.where(bad, 0, seconds), np.where(bad, 0, fractions), problems, unit
  )


def is_time(text: str) -> bool:
  """Whether a cell holds a number or an ISO 8601 time, as no name does."""
  text = text.strip()
  whole = re.sub(r'[.,]\d+', '', re.sub(r' ?(UTC|z)$', 'Z', text))
  whole = re.sub(_BEFORE_ZONE, r'\1', whole)
  return any(
    re.match(pattern, candidate)
    for pattern, candidate in ((_INTEGER, text), (_FLOAT, text), (_ISO, whole))
  )
