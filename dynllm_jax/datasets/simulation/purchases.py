"""What the users of a simulated shop buy at the times planned."""

import numpy as np

from dynllm_jax.datasets.simulation import catalog as catalog_lib
from dynllm_jax.datasets.simulation.catalog import Catalog
from dynllm_jax.datasets.simulation.purchase_times import Plan
from dynllm_jax.types import SECONDS_PER_DAY

MIN_USERS = 5  # distinct buyers of every item
_CANDIDATES = 8


def choose_items(
  rng: np.random.Generator, catalog: Catalog, plan: Plan
) -> np.ndarray:
  """The item of each event, i64[events].

  All users take their k-th step at once. What is not bought again is new to
  its user, so that `plan.again` alone says how many distinct items each user
  has.

  Args:
    rng: the generator.
    catalog: what there is to buy.
    plan: when which users buy.
  """
  num_users = len(plan.counts)
  first = np.cumsum(plan.counts) - plan.counts
  # Users who buy most come first: those left at step k are a prefix.
  order = np.argsort(-plan.counts, kind='stable')
  history = np.full((num_users, plan.counts.max()), -1, np.int32)

  tastes = _first_tastes(rng, catalog, num_users)
  category = np.zeros(num_users, np.int64)
  before = np.zeros(num_users, np.int64)

  for step in range(plan.counts.max()):
    left = int((plan.counts > step).sum())
    event = (first[order] + step)[:left]
    time = plan.times[event]
    days = (time - before[:left]) / SECONDS_PER_DAY if step else np.zeros(left)

    taste = tastes[:left]
    _drift(rng, catalog, taste, days)
    category[:left] = _choose_category(
      rng,
      catalog,
      taste,
      previous=category[:left],
      same_visit=(days < 0.2) & (step > 0),
    )

    past = history[:left, :step]
    period = time // (SECONDS_PER_DAY * catalog_lib.PERIOD_DAYS)
    chosen = _choose_new(
      rng, catalog, taste, past, period=period, category=category[:left]
    )
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
  rng: np.random.Generator, catalog: Catalog, num_users: int
) -> np.ndarray:
  """Users start out with two categories they like, f64[users, TASTE_DIM]."""
  liked = rng.integers(len(catalog.category_tastes), size=(num_users, 2))
  noise = rng.normal(0, 0.2, (num_users, catalog_lib.TASTE_DIM))
  return catalog.category_tastes[liked].sum(axis=1) + noise


def _drift(
  rng: np.random.Generator,
  catalog: Catalog,
  taste: np.ndarray,
  days: np.ndarray,
) -> None:
  """Moves tastes in place: a random walk in time, now and then a new love."""
  walk = rng.normal(0, 1, taste.shape) * (0.02 * np.sqrt(days))[:, None]
  love = rng.random(len(taste)) < 0.03
  target = catalog.category_tastes[
    rng.integers(len(catalog.category_tastes), size=len(taste))
  ]
  taste += walk
  taste[love] = 0.5 * taste[love] + 1.2 * target[love]
  norm = np.linalg.norm(taste, axis=1, keepdims=True)
  taste *= np.minimum(1, 1.8 / norm)


def _choose_category(
  rng: np.random.Generator,
  catalog: Catalog,
  taste: np.ndarray,
  previous: np.ndarray,
  same_visit: np.ndarray,
) -> np.ndarray:
  """Categories by taste; within a visit often the one before, i64[users]."""
  logits = 4.0 * taste @ catalog.category_tastes.T
  drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
  stays = same_visit & (rng.random(len(taste)) < 0.4)
  return np.where(stays, previous, drawn)


def _choose_new(
  rng: np.random.Generator,
  catalog: Catalog,
  taste: np.ndarray,
  past: np.ndarray,
  period: np.ndarray,
  category: np.ndarray,
) -> np.ndarray:
  """Items that the users do not have, i64[users].

  The usual follower of the last item, for some; else the best liked of a few
  drawn by popularity.
  """
  options = catalog_lib.draw_items(rng, catalog, period, category, _CANDIDATES)
  scores = 3.0 * np.einsum(
    'ucd,ud->uc', catalog.tastes[options], taste
  ) + rng.gumbel(size=options.shape)

  if past.shape[1]:
    follower = catalog.followers[
      past[:, -1], rng.integers(catalog.followers.shape[1], size=len(past))
    ]
    follows = rng.random(len(past)) < 0.15
    options = np.concatenate([options, follower[:, None]], axis=1)
    scores = np.concatenate(
      [scores, np.where(follows, 1e9, -np.inf)[:, None]], axis=1
    )

  rows = np.arange(len(options))
  scores = np.where(_owned(options, past), -np.inf, scores)
  chosen = options[rows, scores.argmax(axis=1)]

  # Who has all of the options gets any item that is new to them.
  stuck = np.flatnonzero(np.isneginf(scores.max(axis=1)))
  while len(stuck):
    chosen[stuck] = rng.integers(len(catalog.category), size=len(stuck))
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


def give_every_item_buyers(
  rng: np.random.Generator,
  catalog: Catalog,
  users: np.ndarray,
  bought: np.ndarray,
  again: np.ndarray,
) -> None:
  """Gives every item five buyers, in place.

  Purchases of items that can spare them, and that are not repeated later,
  become purchases of items that lack some: of the same category where there
  are such, of any after a few rounds.

  Args:
    rng: the generator.
    catalog: what there is to buy.
    users: i64[events].
    bought: i64[events], the item of each event; changed in place.
    again: bool[events], of the plan.
  """
  num_items = len(catalog.category)
  repeated = np.unique((users * num_items + bought)[again])
  attempt = 0
  while True:
    pairs = users * num_items + bought
    buyers = np.bincount(bought[~again], minlength=num_items)
    lacks = np.repeat(np.arange(num_items), np.maximum(MIN_USERS - buyers, 0))
    if not len(lacks):
      return

    # Events in random order, as many of each item as it can spare.
    events = np.flatnonzero(~again & ~np.isin(pairs, repeated))
    events = rng.permutation(events)
    by_item = np.argsort(bought[events], kind='stable')
    ordered = bought[events][by_item]
    rank = np.empty(len(events), np.int64)
    rank[by_item] = np.arange(len(events)) - np.searchsorted(ordered, ordered)
    events = events[rank < buyers[bought[events]] - MIN_USERS]

    kinds = catalog.category if attempt < 5 else np.zeros(num_items, np.int64)
    events, lacks = _match(rng, kinds, bought, events, lacks)
    wanted = users[events] * num_items + lacks

    # No item that the user has already, and none twice for one user.
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

  # The k-th lacking item of a kind goes with the k-th spare event of the kind.
  place = (
    np.arange(len(lacks))
    - np.searchsorted(lacking, lacking)
    + np.searchsorted(spare, lacking)
  )
  there = place < np.searchsorted(spare, lacking, 'right')
  return events[place[there]], lacks[there]
