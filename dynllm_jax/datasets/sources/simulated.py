"""Simulated logs of the size of the paper's (SPEC 2.3).

A shop of drifting tastes: users buy what their taste of the moment likes among
what is popular then, follow an item by its usual follower, and buy some things
again. Counts after preparation at 20 / 5 are exact.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets import simulated_items
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.types import RawLog

_START = 1635724800  # 2021-11-01, unix seconds
_DAY = 86_400
_SECONDS = simulated_items.DAYS * _DAY
_MIN_ITEMS, _MIN_USERS = 20, 5
_SALES = np.array([10, 229, 375, 594])  # November 11 and June 18, days
_CANDIDATES = 8


class Size(NamedTuple):
  """What a simulated log must have."""

  users: int
  items: int
  events: int
  title_length: float  # characters, mean
  leaves: int  # leaf categories in each department


SIZES = {
  'tmall': Size(5_651, 10_333, 258_390, 35.51, 5),
  'alibaba': Size(16_901, 30_080, 722_716, 34.22, 8),
  'demo': Size(300, 400, 9_000, 35.51, 2),
}


class _Plan(NamedTuple):
  """When users buy and when they buy again, events by user, then by time.

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


def files(data_config: Any) -> list[source_files.File]:
  """No file: the log is made."""
  del data_config
  return []


def read(data_config: Any) -> RawLog:
  """Makes the log of `size` and `simulation_seed`; see SIZES.

  Every user buys at least 20 distinct items, every item has at least 5
  buyers, no event occurs twice; times lie in the two years from 2021-11-01.

  Raises:
    InputError: for an unknown size.
  """
  if data_config.size not in SIZES:
    raise checks.not_allowed(
      'config.data.size', data_config.size, ', '.join(SIZES)
    )
  size = SIZES[data_config.size]
  rng = np.random.default_rng(data_config.simulation_seed)
  items = simulated_items.make_items(
    rng, size.items, size.leaves, size.title_length
  )
  plan = _make_plan(rng, size)
  users = np.repeat(np.arange(size.users), plan.counts)
  bought = _purchases(rng, items, plan)
  _spread(rng, items, users, bought, plan.again)
  order = np.argsort(plan.times, kind='stable')
  item_ids = _names('item', size.items)
  return RawLog(
    _names('user', size.users)[users[order]],
    item_ids[bought[order]],
    plan.times[order] + _START,
    item_ids,
    items.titles,
    items.categories,
    items.brands,
    {'events simulated': size.events},
    f'simulated log {data_config.size}, seed {data_config.simulation_seed}',
    simulated=True,
  )


def _names(kind: str, count: int) -> np.ndarray:
  return np.array([f'{kind}{n:06d}' for n in range(1, count + 1)], object)


# --------------------------------------------------------------------- times


def _make_plan(rng: np.random.Generator, size: Size) -> _Plan:
  counts = _activity(rng, size)
  users = np.repeat(np.arange(size.users), counts)
  times = _times(rng, counts, users)
  times = times[np.lexsort((times, users))]
  first = np.cumsum(counts) - counts
  position = np.arange(size.events) - first[users]
  new = np.ones(size.events, bool)
  new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
  starts = np.flatnonzero(new)
  number = np.cumsum(new) - 1
  group = position[starts][number]
  # One of a group at most: two might be of one item, an exact duplicate.
  wish = np.flatnonzero((group > 0) & (rng.random(size.events) < 0.1))
  wish = wish[np.unique(number[wish], return_index=True)[1]]
  # A user has 20 distinct items, whatever is bought again.
  wish = wish[np.lexsort((rng.random(len(wish)), users[wish]))]
  rank = np.arange(len(wish)) - np.searchsorted(users[wish], users[wish])
  again = np.zeros(size.events, bool)
  again[wish[rank < counts[users[wish]] - _MIN_ITEMS]] = True
  return _Plan(counts, times, group, again)


def _activity(rng: np.random.Generator, size: Size) -> np.ndarray:
  """Events of each user, heavy-tailed, at least 20, i64[users]."""
  weights = np.minimum(rng.lognormal(0, 1, size.users), 25)
  spare = size.events - _MIN_ITEMS * size.users
  shares = weights / weights.sum() * spare
  extra = np.floor(shares).astype(np.int64)
  missing = spare - extra.sum()
  extra[np.argsort(extra - shares, kind='stable')[:missing]] += 1
  return _MIN_ITEMS + extra


def _times(
  rng: np.random.Generator, counts: np.ndarray, users: np.ndarray
) -> np.ndarray:
  """Seconds of each event: orders within visits within a user's time."""
  num_users, num_events = len(counts), len(users)
  begin = rng.random(num_users) * 0.6 * simulated_items.DAYS
  length = (simulated_items.DAYS - begin) * rng.beta(3, 1.2, num_users)
  first = np.cumsum(counts) - counts
  visit = rng.random(num_events) < 0.4
  visit[first] = True
  # Heavy-tailed gaps between visits, stretched to the user's time.
  gaps = np.where(visit, rng.lognormal(0, 1.5, num_events), 0.0)
  run = np.cumsum(gaps)
  run -= (run - gaps)[first][users]
  last = first + counts - 1
  day = begin[users] + length[users] * run / run[last][users]
  sale = _SALES[np.abs(day[:, None] - _SALES).argmin(axis=1)]
  near = np.abs(day - sale) < 15
  day = np.where(near & (rng.random(num_events) < 0.3), sale, day)
  hour = rng.normal(16, 4, num_events) % 24
  moment = np.floor(day) * _DAY + hour * 3600
  # A visit's events share its start; half of them join the order before.
  visit_start = np.maximum.accumulate(np.where(visit, np.arange(num_events), 0))
  pause = np.where(
    rng.random(num_events) < 0.5, 0.0, rng.exponential(600, num_events)
  )
  pause = np.cumsum(np.where(visit, 0.0, pause))
  moment = moment[visit_start] + pause - pause[visit_start]
  return np.clip(moment, 0, _SECONDS - 1).astype(np.int64)


# --------------------------------------------------------------------- items


def _purchases(
  rng: np.random.Generator, items: simulated_items.Items, plan: _Plan
) -> np.ndarray:
  """The item of each event, i64[events].

  All users take their k-th step at once. What is not bought again is new to
  its user, so that distinct items are counted by `plan.again` alone.
  """
  num_users = len(plan.counts)
  first = np.cumsum(plan.counts) - plan.counts
  # Users who buy most come first: those left at step k are a prefix.
  order = np.argsort(-plan.counts, kind='stable')
  history = np.full((num_users, plan.counts.max()), -1, np.int32)
  tastes = _first_tastes(rng, items, num_users)
  category = np.zeros(num_users, np.int64)
  before = np.zeros(num_users, np.int64)
  for step in range(plan.counts.max()):
    left = int((plan.counts > step).sum())
    event = (first[order] + step)[:left]
    time = plan.times[event]
    days = (time - before[:left]) / _DAY if step else np.zeros(left)
    taste = tastes[:left]
    _drift(rng, items, taste, days)
    category[:left] = _choose_category(
      rng, items, taste, category[:left], (days < 0.2) & (step > 0)
    )
    past = history[:left, :step]
    period = time // (_DAY * simulated_items.PERIOD_DAYS)
    chosen = _choose_new(rng, items, taste, past, period, category[:left])
    again = np.flatnonzero(plan.again[event])
    if len(again):
      # The last purchases before this moment are the likeliest.
      group = plan.group[event[again]]
      back = (rng.geometric(0.12, len(again)) - 1) % group
      chosen[again] = past[again, group - 1 - back]
    history[:left, step] = chosen
    before[:left] = time
  bought = history[history >= 0]
  rows = np.repeat(order, plan.counts[order])
  return bought[np.argsort(rows, kind='stable')].astype(np.int64)


def _first_tastes(
  rng: np.random.Generator, items: simulated_items.Items, num_users: int
) -> np.ndarray:
  """Users start out with two categories they like, f64[users, TASTE_DIM]."""
  liked = rng.integers(len(items.category_tastes), size=(num_users, 2))
  noise = rng.normal(0, 0.2, (num_users, simulated_items.TASTE_DIM))
  return items.category_tastes[liked].sum(axis=1) + noise


def _drift(
  rng: np.random.Generator,
  items: simulated_items.Items,
  taste: np.ndarray,
  days: np.ndarray,
) -> None:
  """Moves tastes in place: a random walk in time, now and then a new love."""
  walk = rng.normal(0, 1, taste.shape) * (0.02 * np.sqrt(days))[:, None]
  love = rng.random(len(taste)) < 0.03
  target = items.category_tastes[
    rng.integers(len(items.category_tastes), size=len(taste))
  ]
  taste += walk
  taste[love] = 0.5 * taste[love] + 1.2 * target[love]
  norm = np.linalg.norm(taste, axis=1, keepdims=True)
  taste *= np.minimum(1, 1.8 / norm)


def _choose_category(
  rng: np.random.Generator,
  items: simulated_items.Items,
  taste: np.ndarray,
  previous: np.ndarray,
  same_visit: np.ndarray,
) -> np.ndarray:
  """Categories by taste; within a visit often the one before, i64[users]."""
  logits = 4.0 * taste @ items.category_tastes.T
  drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
  stays = same_visit & (rng.random(len(taste)) < 0.4)
  return np.where(stays, previous, drawn)


def _choose_new(
  rng: np.random.Generator,
  items: simulated_items.Items,
  taste: np.ndarray,
  past: np.ndarray,
  period: np.ndarray,
  category: np.ndarray,
) -> np.ndarray:
  """Items that the users do not have, i64[users].

  The usual follower of the last item, for some; else the best liked of a few
  drawn by popularity.
  """
  options = simulated_items.draw_items(
    rng, items, period, category, _CANDIDATES
  )
  scores = 3.0 * np.einsum(
    'ucd,ud->uc', items.tastes[options], taste
  ) + rng.gumbel(size=options.shape)
  if past.shape[1]:
    follower = items.followers[
      past[:, -1], rng.integers(items.followers.shape[1], size=len(past))
    ]
    follows = rng.random(len(past)) < 0.15
    options = np.concatenate([options, follower[:, None]], axis=1)
    scores = np.concatenate(
      [scores, np.where(follows, 1e9, -np.inf)[:, None]], axis=1
    )
  rows = np.arange(len(options))
  scores = np.where(_owned(options, past), -np.inf, scores)
  chosen = options[rows, scores.argmax(axis=1)]
  stuck = np.flatnonzero(np.isneginf(scores.max(axis=1)))
  while len(stuck):
    chosen[stuck] = rng.integers(len(items.category), size=len(stuck))
    stuck = stuck[_owned(chosen[stuck, None], past[stuck])[:, 0]]
  return chosen


def _owned(options: np.ndarray, past: np.ndarray) -> np.ndarray:
  """Which options [users, n] are among the past [users, k], bool[users, n]."""
  return np.stack(
    [
      (past == column[:, None]).any(axis=1)
      for column in options.T.astype(past.dtype)
    ],
    axis=1,
  )


def _spread(
  rng: np.random.Generator,
  items: simulated_items.Items,
  users: np.ndarray,
  bought: np.ndarray,
  again: np.ndarray,
) -> None:
  """Gives every item five buyers, in place.

  Purchases of items that can spare them, and that are not repeated later,
  become purchases of items that lack some: of the same category where there
  are such, of any after a few rounds.
  """
  num_items = len(items.category)
  repeated = np.unique((users * num_items + bought)[again])
  attempt = 0
  while True:
    pairs = users * num_items + bought
    buyers = np.bincount(bought[~again], minlength=num_items)
    lacks = np.repeat(np.arange(num_items), np.maximum(_MIN_USERS - buyers, 0))
    if not len(lacks):
      return
    events = np.flatnonzero(~again & ~np.isin(pairs, repeated))
    events = rng.permutation(events)
    by_item = np.argsort(bought[events], kind='stable')
    ordered = bought[events][by_item]
    rank = np.empty(len(events), np.int64)
    rank[by_item] = np.arange(len(events)) - np.searchsorted(ordered, ordered)
    events = events[rank < buyers[bought[events]] - _MIN_USERS]
    kinds = items.category if attempt < 5 else np.zeros(num_items, np.int64)
    events, lacks = _match(rng, kinds, bought, events, lacks)
    wanted = users[events] * num_items + lacks
    # Not what the user has, nor twice for one user.
    _, once = np.unique(wanted, return_index=True)
    once = once[~np.isin(wanted[once], pairs)]
    bought[events[once]] = lacks[once]
    attempt += 1


def _match(
  rng: np.random.Generator,
  kinds: np.ndarray,
  bought: np.ndarray,
  events: np.ndarray,
  lacks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Pairs spare events with lacking items of one kind."""
  events = events[np.argsort(kinds[bought[events]], kind='stable')]
  lacks = rng.permutation(lacks)
  lacks = lacks[np.argsort(kinds[lacks], kind='stable')]
  spare, lacking = kinds[bought[events]], kinds[lacks]
  place = (
    np.arange(len(lacks))
    - np.searchsorted(lacking, lacking)
    + np.searchsorted(spare, lacking)
  )
  there = place < np.searchsorted(spare, lacking, 'right')
  return events[place[there]], lacks[there]
