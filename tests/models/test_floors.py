"""Count-based floors against a slow reading of SPEC 6, event by event."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.bases import counts
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import inputs as inputs_lib
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import FacetBank
from dynllm_jax.types import InputError
from dynllm_jax.types import Pending
from dynllm_jax.types import SECONDS_PER_DAY
from tests.testing import logs

FLOORS = ('popularity', 'recent_popularity', 'repeat', 'itemknn', 'transitions')
NUM_USERS, NUM_ITEMS = 17, 40
# Sizes of groups of equal times; the largest does not fit into a batch.
GROUPS = [1, 3, 2, 1, 8, 1, 1, 5, 1, 2, 1, 12, 1, 4, 1, 1, 19, 2, 1, 6] * 3
NUM_EVENTS = sum(GROUPS)
TRAIN_END = sum(GROUPS[:35])
RANKING = Ranking(jnp.ones([NUM_ITEMS + 1], bool), 65_536)


# ------------------------------------------------------------------ oracles


class Oracle:
  """Scores of SPEC 6 in float64, from lists of earlier events."""

  def __init__(self, name, log):
    self.name = name
    self.past = {user: [] for user in range(1, NUM_USERS + 1)}  # latest first
    self.events = []  # (item, days)
    self.c = np.zeros([NUM_ITEMS + 1, NUM_ITEMS + 1])
    train = slice(0, log.train_end)
    self.takers = {
      item: set(log.users[train][log.items[train] == item].tolist())
      for item in range(NUM_ITEMS + 1)
    }
    self.cosines = np.array(
      [
        [self.cosine(x, y) for y in range(NUM_ITEMS + 1)]
        for x in range(NUM_ITEMS + 1)
      ]
    )

  def recent(self, days):
    out = np.zeros(NUM_ITEMS + 1)
    for item, then in self.events:
      out[item] += 0.5 ** ((days - then) / 30)
    return out

  def cosine(self, x, y):
    both = len(self.takers[x] & self.takers[y])
    if x == y or not both:
      return 0.0
    return both / np.sqrt(len(self.takers[x]) * len(self.takers[y]))

  def scores(self, user, days):
    """f64[items + 1] for a user at a time."""
    past, recent = self.past[user], self.recent(days)
    if self.name == 'popularity':
      return np.bincount(
        [item for item, _ in self.events], minlength=NUM_ITEMS + 1
      )
    if self.name == 'recent_popularity':
      return recent
    if self.name == 'repeat':
      out = 1e-9 * recent
      for k, item in enumerate(past[:20]):
        out[item] += 1 / (k + 1)
      return out
    if self.name == 'itemknn':
      return 1e-9 * recent + sum(
        (self.cosines[x] for x in set(past[:50])), np.zeros(NUM_ITEMS + 1)
      )
    out = 1e-6 * recent / max(recent.max(), 1e-30)
    for k, x in enumerate(past[:10]):
      out += self.c[x] / ((k + 1) * (self.c[x].sum() + 5))
    return out

  def add(self, group):
    """Enters (user, item, days) of one time, in file order."""
    for user, item, _ in group:
      for k, x in enumerate(self.past[user][:10]):
        self.c[x, item] += 1 / (k + 1)
    for user, item, days in group:
      self.past[user].insert(0, item)
      self.events.append((item, days))


def oracle_ranks(name, log):
  """Ranks, and the bounds within which rounding to float32 may move them."""
  oracle, rows = Oracle(name, log), []
  bounds = np.flatnonzero(np.diff(log.times)) + 1
  for group in np.split(np.arange(log.num_events), bounds):
    events = [
      (int(log.users[e]), int(log.items[e]), log.times[e] / SECONDS_PER_DAY)
      for e in group
    ]
    for user, item, days in events:
      scores = oracle.scores(user, days)
      others = np.delete(scores, [0, item])
      positive = scores[item]
      room = 3e-6 * abs(positive)
      rows.append(
        (
          1 + np.sum(others > positive) + np.sum(others == positive) / 2,
          1 + np.sum(others > positive + room),
          1 + np.sum(others >= positive - room),
        )
      )
    oracle.add(events)
  return np.array(rows).T


# -------------------------------------------------------------------- set-up


def make_log(seed):
  """Users and items by chance, the same times for every seed."""
  rng = np.random.default_rng(seed)
  gaps = np.random.default_rng(0).integers(1, 9 * SECONDS_PER_DAY, len(GROUPS))
  # Squares, so that some items are popular and some never occur in training.
  items = 1 + (NUM_ITEMS * rng.random(NUM_EVENTS) ** 2).astype(np.int32)
  # Runs of one user, as the lines of an invoice are.
  users = np.repeat(rng.integers(1, NUM_USERS + 1, NUM_EVENTS), 3)
  times = np.repeat(np.cumsum(gaps) - gaps[0], GROUPS)
  log = logs.make_log(users[:NUM_EVENTS], items, times, NUM_USERS, NUM_ITEMS)
  return dataclasses.replace(
    log, train_end=TRAIN_END, validation_end=NUM_EVENTS
  )


def make_inputs(log):
  """Inputs without texts, whose compiled program does not depend on the log."""
  facets = FacetBank(
    texts=np.zeros([1, 1], np.float16),
    offsets=np.zeros(NUM_USERS + 2, np.int32),
    closes=np.zeros(0, np.int32),
    index=np.zeros([0, 4], np.int32),
    longest=0,
  )
  inputs = inputs_lib.build_inputs(
    log, np.zeros([NUM_ITEMS + 1, 1], np.float16), facets, 256
  )
  # What depends on the log and is static, or not read, is made the same for
  # all logs: one compilation serves them.
  user_graph, item_graph = (
    graph.replace(longest=NUM_EVENTS)
    for graph in (inputs.user_graph, inputs.item_graph)
  )
  return jax.device_put(
    inputs.replace(same_time=None, user_graph=user_graph, item_graph=item_graph)
  )


@functools.cache
def make_system(name):
  return config_lib.system_module(name).build(config_lib.default(name).model)


def init(system, inputs):
  return jax.jit(system.init, static_argnums=2)(
    jax.random.key(0), inputs, NUM_EVENTS
  )


def replay(name, log, plan, ranking=RANKING):
  system, inputs = make_system(name), make_inputs(log)
  params, memory = init(system, inputs)
  return evaluate.replay(
    BoundSystem(system, params, inputs), memory, plan, ranking
  )


def plan_of(log):
  return batching.plan_by_time(log.times, 0, log.num_events)


# --------------------------------------------------------------------- tests


@pytest.mark.parametrize('name', FLOORS)
@pytest.mark.parametrize('seed', range(3))
def test_ranks_match_the_oracle(name, seed):
  log = make_log(seed)
  _, ranks = replay(name, log, plan_of(log))
  exact, lowest, highest = oracle_ranks(name, log)
  assert np.all(lowest <= ranks) and np.all(ranks <= highest)
  # In ItemKNN many items tie but for recent popularity's 1e-9, which rounding
  # hides behind sums of cosines.
  allowed = 0.5 if name == 'itemknn' else 0.01
  assert np.mean(np.abs(ranks - exact)) < allowed


@pytest.mark.parametrize('name', FLOORS)
def test_rows_of_a_batch_make_no_difference(name, monkeypatch):
  log = make_log(0)
  usual = plan_of(log)
  monkeypatch.setattr(batching, 'MAX_ROWS_BY_TIME', 1)
  single = plan_of(log)
  assert single.batch_size == 1 < usual.batch_size < max(GROUPS)
  memory, ranks = replay(name, log, usual)
  memory_single, ranks_single = replay(name, log, single)
  np.testing.assert_array_equal(ranks, ranks_single)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    memory,
    memory_single,
  )


@pytest.mark.parametrize('name', FLOORS)
def test_the_future_changes_nothing(name):
  log = make_log(0)
  _, ranks = replay(name, log, plan_of(log))
  other = make_log(1)
  for end in (sum(GROUPS[:24]), TRAIN_END, sum(GROUPS[:50])):
    if name == 'itemknn' and end < TRAIN_END:
      continue  # its similarities are those of the whole training split
    changed = dataclasses.replace(
      log,
      users=np.concatenate([log.users[:end], other.users[end:]]),
      items=np.concatenate([log.items[:end], other.items[end:]]),
    )
    _, ranks_changed = replay(name, changed, plan_of(changed))
    # The group at `end` is scored by what is earlier, too.
    np.testing.assert_array_equal(ranks[:end], ranks_changed[:end])
    assert np.any(ranks[end:] != ranks_changed[end:])


@pytest.mark.parametrize('name', FLOORS)
def test_padding_is_inert(name):
  log = make_log(0)
  system, inputs = make_system(name), make_inputs(log)
  memory, _ = replay(name, log, plan_of(log), ranking=None)
  for leaf in jax.tree.leaves(memory):
    assert not np.any(leaf[0]) and not np.any(leaf.T[0])
  # Real ids in masked rows, later than everything.
  rows = jnp.arange(1, 6, dtype=jnp.int32)
  masked = Pending(
    EventBatch(
      rows,
      rows,
      jnp.full([5], log.times[-1] + 9, jnp.int32),
      jnp.zeros([5], bool),
    ),
    jnp.zeros([5, 1]),
    jnp.zeros([5, 1]),
    jnp.array(True),
  )
  after = jax.jit(system.update)({}, memory, inputs, masked)
  jax.tree.map(np.testing.assert_array_equal, memory, after)


@pytest.mark.parametrize('name', FLOORS)
def test_reset_is_as_before_the_first_event(name):
  log = make_log(0)
  system = make_system(name)
  _, fresh = init(system, make_inputs(log))
  memory, _ = replay(name, log, plan_of(log), ranking=None)
  jax.tree.map(np.testing.assert_array_equal, fresh, system.reset(memory))


@pytest.mark.parametrize('name', FLOORS)
def test_scores_are_finite_before_the_first_event(name):
  log = make_log(0)
  system, inputs = make_system(name), make_inputs(log)
  params, memory = init(system, inputs)
  nobody = jnp.zeros([2], jnp.int32)
  users, _ = system.embed(
    params, memory, inputs, nobody, nobody, nobody, jnp.int32(0), None
  )
  assert np.all(np.isfinite(users.item_scores))
  assert not np.any(users.item_scores)


@pytest.mark.parametrize('name', ['itemknn', 'transitions'])
def test_a_table_that_is_too_large_is_refused(name):
  inputs = make_inputs(make_log(0))
  config = config_lib.default(name).model
  table = (NUM_ITEMS + 1) ** 2 * 4 / 2**30
  config.max_table_gib = 0.99 * table
  system = config_lib.system_module(name).build(config)
  with pytest.raises(InputError, match='config.model.max_table_gib'):
    init(system, inputs)
  config.max_table_gib = 1.01 * table
  init(config_lib.system_module(name).build(config), inputs)


@pytest.mark.parametrize(
  'name, field',
  [
    ('recent_popularity', 'half_life_days'),
    ('repeat', 'depth'),
    ('transitions', 'shrinkage'),
    ('itemknn', 'depth'),
  ],
)
def test_a_field_of_zero_is_refused(name, field):
  config = config_lib.default(name).model
  config[field] = type(config[field])(0)
  with pytest.raises(InputError, match=f'config.model.{field}'):
    config_lib.system_module(name).build(config)


def test_decayed_counts_of_one_batch_with_many_times():
  # One item at three times in one batch, one of them as early as before.
  state = counts.no_decayed_counts(3)
  day = SECONDS_PER_DAY
  for items, days, mask in (
    ([2, 1, 3, 2], [4, 4, 9, 7], [1, 1, 0, 1]),
    ([2, 2, 2, 3], [7, 8, 13, 13], [1, 1, 1, 1]),
  ):
    state = counts.add_to_decayed_counts(
      state,
      EventBatch(
        jnp.ones([4], jnp.int32),
        jnp.array(items, jnp.int32),
        jnp.array(days, jnp.int32) * day,
        jnp.array(mask, bool),
      ),
      5.0,
    )
  half = lambda days: 0.5 ** (days / 5)
  np.testing.assert_allclose(
    counts.decayed_counts_at(state, jnp.int32(15 * day), 5.0),
    [0, half(11), half(11) + 2 * half(8) + half(7) + half(2), half(2)],
    rtol=1e-6,
  )
