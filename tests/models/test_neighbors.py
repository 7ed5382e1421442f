"""EASE, STAN and UP-CF against slow readings of their equations."""

import math

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.graph import temporal
from dynllm_jax.types import InputError
from tests.testing import logs
from tests.testing import replays

NUM_USERS, NUM_ITEMS = 7, 9
LOG = logs.random_log(
  5, num_users=NUM_USERS, num_items=NUM_ITEMS, num_events=90, num_times=30
)
DAY = 86_400


def scores_of(name, **fields):
  """f32[events, items + 1], column 0 empty, of a replay of the log."""
  config = config_lib.default(name).model
  config.update(fields)
  system = config_lib.system_module(name).build(config)
  inputs = logs.random_inputs(LOG, padding=256)
  params, memory = jax.jit(system.init, static_argnums=2)(
    jax.random.key(0), inputs, 1
  )
  scores = replays.all_scores(system, params, memory, inputs, LOG)
  return np.pad(scores, ((0, 0), (1, 0)))


def past(user, time):
  """What a user took strictly before a time, the latest first: (item, time)."""
  events = zip(LOG.users, LOG.items, LOG.times)
  return [(int(i), int(t)) for u, i, t in events if u == user and t < time][
    ::-1
  ]


def check(found, oracle):
  """Compares every event's scores, of which some are not zero."""
  filled = 0
  for row, user, time in zip(found, LOG.users, LOG.times):
    expected = oracle(int(user), int(time))
    np.testing.assert_allclose(row, expected, rtol=2e-4, atol=2e-6)
    filled += bool(np.any(expected))
  assert filled > len(LOG.users) / 2


def test_ease_is_the_closed_form(monkeypatch):
  monkeypatch.setattr(temporal, '_PAST_BLOCK', 4)  # histories of several
  matrix = np.zeros([NUM_USERS + 1, NUM_ITEMS + 1])
  matrix[LOG.users[: LOG.train_end], LOG.items[: LOG.train_end]] = 1
  inverse = np.linalg.inv(matrix.T @ matrix + 3.0 * np.eye(NUM_ITEMS + 1))
  weights = -inverse / np.diag(inverse)
  np.fill_diagonal(weights, 0)

  # It is the best of its kind: a step in any direction makes it worse.
  def objective(w):
    return np.sum((matrix - matrix @ w) ** 2) + 3.0 * np.sum(w**2)

  rng = np.random.default_rng(0)
  for _ in range(20):
    step = rng.normal(size=weights.shape) * 1e-3
    np.fill_diagonal(step, 0)
    assert objective(weights) < objective(weights + step)

  found = scores_of('ease', penalty=3.0, popularity_weight=0.0)
  check(
    found,
    lambda user, time: sum(
      (weights[x] for x in {item for item, _ in past(user, time)}),
      np.zeros(NUM_ITEMS + 1),
    ),
  )


def up_cf(user, time, *, recency, locality, asymmetry):
  """UP-CF over all users, from sets and lists."""
  taken = {v: {i for i, _ in past(v, time)} for v in range(1, NUM_USERS + 1)}
  scores = np.zeros(NUM_ITEMS + 1)
  for v, items in taken.items():
    if not taken[user] & items:
      continue
    alike = len(taken[user] & items) / (
      len(taken[user]) ** asymmetry * len(items) ** (1 - asymmetry)
    )
    times = sorted({t for _, t in past(v, time)})[-recency:]
    for item in items:
      baskets = sum((item, t) in past(v, time) for t in times)
      scores[item] += alike**locality * baskets / len(times)
  return scores


@pytest.mark.parametrize('recency', [2, 25])
def test_up_cf_is_its_equations(recency, monkeypatch):
  monkeypatch.setattr(temporal, '_PAST_BLOCK', 4)
  fields = {'recency': recency, 'locality': 2.0, 'asymmetry': 0.25}
  found = scores_of('upcf', popularity_weight=0.0, **fields)
  check(found, lambda user, time: up_cf(user, time, **fields))


def stan(user, time, *, depth, num_takers, num_neighbors, before, after):
  """STAN from lists, with the sizes that the system is given."""
  found = past(user, time)[:depth]
  places = {}  # of each item of s, its latest
  for k, (item, _) in enumerate(found):
    places.setdefault(item, k)
  similar, common = {}, {}
  for item, k in places.items():
    takers = [
      (int(u), int(t))
      for u, i, t in zip(LOG.users, LOG.items, LOG.times)
      if i == item and t < time
    ][::-1][:num_takers]
    for v in {v for v, _ in takers} - {user}:
      similar[v] = similar.get(v, 0) + math.exp(-k / 2.0)
      common.setdefault(v, (item, max(t for w, t in takers if w == v)))
  for v in similar:
    age = (time - common[v][1]) / DAY
    length = len(places) * len(past(v, time))
    similar[v] *= math.exp(-age / 20) / math.sqrt(length)

  scores = np.zeros(NUM_ITEMS + 1)
  for v in sorted(similar, key=lambda v: (-similar[v], v))[:num_neighbors]:
    row = past(v, time)[::-1]  # oldest first
    item, then = common[v]
    start = sum(t < then for _, t in row)
    low, high = max(0, start - before), start + after
    at = row.index((item, then))
    if at >= high:
      continue
    for p, (other, _) in enumerate(row[low:high], start=low):
      scores[other] += similar[v] * math.exp(-abs(at - p) / 1.5)
  return scores


@pytest.mark.parametrize('sizes', [(4, 5, 3, 2, 3), (20, 50, 100, 90, 90)])
def test_stan_is_its_equations(sizes):
  """With lists that cut and with lists that hold everything."""
  names = ('depth', 'num_takers', 'num_neighbors', 'before', 'after')
  fields = dict(zip(names, sizes))
  found = scores_of(
    'stan',
    popularity_weight=0.0,
    position_decay=2.0,
    item_decay=1.5,
    **fields,
  )
  check(found, lambda user, time: stan(user, time, **fields))


@pytest.mark.parametrize(
  'name, field, value',
  [
    ('ease', 'penalty', 0.0),
    ('stan', 'before', -1),
    ('upcf', 'asymmetry', 1.5),
  ],
)
def test_a_bad_field_is_named(name, field, value):
  config = config_lib.default(name).model
  config[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}: {value}'):
    config_lib.system_module(name).build(config)


@pytest.mark.parametrize('name', ['ease', 'upcf'])
def test_tables_that_are_too_large_are_refused(name):
  with pytest.raises(InputError, match='config.model.max_table_gib'):
    scores_of(name, max_table_gib=1e-9)
