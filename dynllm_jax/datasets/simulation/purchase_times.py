"""When the users of a simulated shop buy, and when they buy again."""

from typing import NamedTuple

import numpy as np

from dynllm_jax.datasets.simulation import catalog
from dynllm_jax.types import SECONDS_PER_DAY

MIN_ITEMS = 20  # distinct items of every user
_SECONDS = catalog.DAYS * SECONDS_PER_DAY
_SALES = np.array([10, 229, 375, 594])  # November 11 and June 18, days


class Plan(NamedTuple):
  """When users buy and when they buy again; events are by user, then by time.

  Attributes:
    counts: i64[users], events of each.
    times: i64[events], seconds since the start.
    group: i64[events], a user's number of strictly earlier events.
    again: bool[events], whether the item is one bought strictly earlier.
  """

  counts: np.ndarray
  times: np.ndarray
  group: np.ndarray
  again: np.ndarray


def plan_purchases(
  rng: np.random.Generator, num_users: int, num_events: int
) -> Plan:
  """Draws how often and when each user buys.

  Args:
    rng: the generator.
    num_users: how many users.
    num_events: how many events of them all, at least 20 a user.
  """
  counts = _activity(rng, num_users, num_events)
  users = np.repeat(np.arange(num_users), counts)
  times = _times(rng, counts, users)
  times = times[np.lexsort((times, users))]

  # A group is what a user buys at one time.
  first = np.cumsum(counts) - counts
  position = np.arange(num_events) - first[users]
  new = np.ones(num_events, bool)
  new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
  starts = np.flatnonzero(new)
  number = np.cumsum(new) - 1
  group = position[starts][number]

  # At most one repeat in a group: two of one item would be exact duplicates.
  wish = np.flatnonzero((group > 0) & (rng.random(num_events) < 0.1))
  wish = wish[np.unique(number[wish], return_index=True)[1]]
  # A user has 20 distinct items, whatever is bought again.
  wish = wish[np.lexsort((rng.random(len(wish)), users[wish]))]
  rank = np.arange(len(wish)) - np.searchsorted(users[wish], users[wish])
  again = np.zeros(num_events, bool)
  again[wish[rank < counts[users[wish]] - MIN_ITEMS]] = True
  return Plan(counts, times, group, again)


def _activity(
  rng: np.random.Generator, num_users: int, num_events: int
) -> np.ndarray:
  """Events of each user, heavy-tailed, at least 20, i64[users]."""
  weights = np.minimum(rng.lognormal(0, 1, num_users), 25)
  spare = num_events - MIN_ITEMS * num_users
  shares = weights / weights.sum() * spare
  extra = np.floor(shares).astype(np.int64)
  missing = spare - extra.sum()
  extra[np.argsort(extra - shares, kind='stable')[:missing]] += 1
  return MIN_ITEMS + extra


def _times(
  rng: np.random.Generator, counts: np.ndarray, users: np.ndarray
) -> np.ndarray:
  """Seconds of each event, i64[events], not sorted.

  A user's active time has visits, here sessions of one or more orders; the
  events of an order have one time.
  """
  num_users, num_events = len(counts), len(users)
  begin = rng.random(num_users) * 0.6 * catalog.DAYS
  length = (catalog.DAYS - begin) * rng.beta(3, 1.2, num_users)
  first = np.cumsum(counts) - counts
  visit = rng.random(num_events) < 0.4
  visit[first] = True

  # Heavy-tailed gaps between visits, stretched to the user's time.
  gaps = np.where(visit, rng.lognormal(0, 1.5, num_events), 0.0)
  run = np.cumsum(gaps)
  run -= (run - gaps)[first][users]
  last = first + counts - 1
  day = begin[users] + length[users] * run / run[last][users]

  # Part of what is bought around a sale is bought on its day.
  sale = _SALES[np.abs(day[:, None] - _SALES).argmin(axis=1)]
  near = np.abs(day - sale) < 15
  day = np.where(near & (rng.random(num_events) < 0.3), sale, day)

  hour = rng.normal(16, 4, num_events) % 24
  moment = np.floor(day) * SECONDS_PER_DAY + hour * 3600

  # A visit's events share its start; half of them join the order before.
  visit_start = np.maximum.accumulate(np.where(visit, np.arange(num_events), 0))
  pause = np.where(
    rng.random(num_events) < 0.5, 0.0, rng.exponential(600, num_events)
  )
  pause = np.cumsum(np.where(visit, 0.0, pause))
  moment = moment[visit_start] + pause - pause[visit_start]
  return np.clip(moment, 0, _SECONDS - 1).astype(np.int64)
