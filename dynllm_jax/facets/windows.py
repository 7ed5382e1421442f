"""Windows on a fixed grid of the log's timeline, and who was active in them."""

import dataclasses

import numpy as np

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.types import EventLog
from dynllm_jax.types import SECONDS_PER_DAY

VERSION = 1

_MAX_TIME = np.iinfo(np.int32).max  # the last second that a device can hold


@dataclasses.dataclass(frozen=True)
class Profiles:
  """Users and the windows in which they bought something (SPEC 3.6).

  Rows are sorted by user, then by close; a user without a purchase in a
  window has no row for it. The purchases of a row, oldest first, are the
  events `order[first[row]:last[row]]` of the log, and all a writer may read.

  Attributes:
    users: i32[rows].
    closes: i64[rows], seconds; a row's purchases lie in `[close - window,
      close)`.
    first, last: i64[rows], bounds in `order`.
    order: i64[events], event positions by user, then by time.
  """

  users: np.ndarray
  closes: np.ndarray
  first: np.ndarray
  last: np.ndarray
  order: np.ndarray

  def __len__(self) -> int:
    return len(self.users)

  def newest(self, row: int, limit: int) -> np.ndarray:
    """Positions of a row's newest `limit` events, i64[...], newest first."""
    start = max(self.first[row], self.last[row] - limit)
    return self.order[start : self.last[row]][::-1]


RULE = Rule(
  'window_days',
  f'from one second, {1 / SECONDS_PER_DAY:.1e}, to '
  f'{_MAX_TIME // SECONDS_PER_DAY} days',
  lambda days: 0.5 < days * SECONDS_PER_DAY < _MAX_TIME + 0.5,
)


def window_seconds(window_days: float) -> int:
  """The length of a window.

  Args:
    window_days: `config.facets.window_days`.

  Returns:
    The nearest whole number of seconds.

  Raises:
    InputError: if that is less than one second or more than int32 holds.
  """
  if not RULE.holds(window_days):
    raise checks.not_allowed(
      'config.facets.window_days', window_days, RULE.allowed
    )
  return round(window_days * SECONDS_PER_DAY)


def profiles(log: EventLog, window: int) -> Profiles:
  """Finds every user's active windows `[c - window, c)`, `c = k window`.

  A window that is still open at the end of the log is kept, since a system in
  use will need it. One that closes after the last int32 second is left out,
  since no time on the device can be that late.

  Args:
    log: the prepared log.
    window: length in seconds.
  """
  order = np.argsort(log.users, kind='stable')  # the log is sorted by time
  users = log.users[order]
  closes = (log.times[order].astype(np.int64) // window + 1) * window
  new = np.ones(len(users), bool)
  new[1:] = (users[1:] != users[:-1]) | (closes[1:] != closes[:-1])
  first = np.flatnonzero(new)
  last = np.append(first[1:], len(users))
  readable = closes[first] <= _MAX_TIME
  first, last = first[readable], last[readable]
  return Profiles(
    users=users[first],
    closes=closes[first],
    first=first,
    last=last,
    order=order,
  )
