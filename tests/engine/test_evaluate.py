"""Ranking and replay: chance, filters, groups, groups of equal times."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import temporal
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import InputError
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings
from tests.testing import logs
from tests.testing import tiny_runs
from tests.testing import variants


def table_system(table):
  """A system without a state: user u scores item i as `table[u, i]`."""
  table = jnp.asarray(table, jnp.float32)

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    del params, memory, inputs, user_times, item_time, key
    return (
      UserEmbeddings(vector=table[users]),
      ItemEmbeddings(items, jnp.eye(table.shape[1])[items]),
    )

  keep = lambda memory: memory
  return System(
    'none',
    False,
    lambda *_: ({}, {}),
    keep,
    embed,
    lambda params, memory, inputs, pending: memory,
  )


def rank(system, log, how):
  plan = batching.plan_batches(log.times, 0, log.num_events, 8)
  inputs = logs.random_inputs(log, padding=8)
  return evaluate.replay(BoundSystem(system, {}, inputs), {}, plan, how)[1]


def among_all(log, block):
  """Ranking among the whole catalogue, nothing filtered."""
  return Ranking(ranking.candidate_mask(log, 'all'), block)


@pytest.mark.parametrize('block', [3, 8])
def test_a_constant_scorer_gives_chance(block):
  log = logs.random_log(0)
  ranks = rank(table_system(np.ones([7, 9])), log, among_all(log, block))
  np.testing.assert_array_equal(ranks, (log.num_items + 1) / 2)


@pytest.mark.parametrize('block', [3, 8])
@pytest.mark.parametrize('seen', [False, True])
@pytest.mark.parametrize('which', ['all', 'future'])
def test_ranks_equal_a_brute_force_with_ties(block, seen, which, monkeypatch):
  # Histories of several blocks, the longest of 13 events.
  monkeypatch.setattr(temporal, '_PAST_BLOCK', 4)
  log = logs.random_log(1, num_events=60)
  table = np.random.default_rng(0).integers(0, 4, (7, 9))
  candidates = ranking.candidate_mask(log, which)
  ranks = rank(table_system(table), log, Ranking(candidates, block, seen))
  for k in range(log.num_events):
    user, item, time = log.users[k], log.items[k], log.times[k]
    past = {
      i
      for u, i, t in zip(log.users, log.items, log.times)
      if u == user and t < time
    }
    rivals = [
      x
      for x in range(1, 9)
      if x != item and candidates[x] and not (seen and x in past)
    ]
    above = sum(table[user, x] > table[user, item] for x in rivals)
    level = sum(table[user, x] == table[user, item] for x in rivals)
    assert ranks[k] == 1 + above + level / 2


def test_the_training_split_decides_whether_seen_items_are_ranked():
  users, items = [1, 1, 2, 2, 1, 1, 2, 2, 1, 2], [1, 2, 1, 2, 3, 4, 3, 4, 1, 1]
  once = logs.make_log(users, items, range(10))
  assert once.train_end == 7  # the repeats are in validation and test
  items[3] = 1
  again = logs.make_log(users, items, range(10))
  for choice, decided in (
    ('auto', (True, False)),
    (True, (True, True)),
    (False, (False, False)),
  ):
    config = variants.tiny_config('popularity')
    config.eval.ks, config.eval.filter_seen = (1, 2), choice
    found = [ranking.make_ranking(config, log) for log in (once, again)]
    assert tuple(how.filter_seen for how in found) == decided
  config.eval.filter_seen = 'yes'
  with pytest.raises(InputError, match="filter_seen: 'yes'.*auto, True, False"):
    ranking.make_ranking(config, once)


def test_a_score_that_is_not_finite_stops_the_run():
  log = logs.random_log(0)
  table = np.ones([7, 9])
  table[3, 4] = np.nan
  with pytest.raises(InputError, match='not finite'):
    rank(table_system(table), log, among_all(log, 8))


@pytest.mark.slow
def test_parts_of_a_group_share_one_state():
  """Batches of one row and whole groups of equal times rank alike."""
  log = logs.random_log(
    2, num_users=10, num_items=12, num_events=120, num_times=15
  )
  system = tiny_runs.make_system(variants.tiny_config('dynllm+text+counts'))
  inputs = logs.random_inputs(log, padding=64)
  params, memory = jax.jit(system.init, static_argnums=2)(
    jax.random.key(0), inputs, 4
  )
  bound = BoundSystem(system, params, inputs)
  results = []
  for size in (3, 64):
    rows = []  # a batch for each time, or several
    for start in np.unique(log.times, return_index=True)[1]:
      end = int(np.searchsorted(log.times, log.times[start], side='right'))
      rows.append(batching.plan_batches(log.times, start, end, size))
    plan = rows[0]._replace(
      batches=jax.tree.map(
        lambda *columns: np.concatenate(columns), *(p.batches for p in rows)
      ),
      num_parts=max(p.num_parts for p in rows),
    )
    results.append(evaluate.replay(bound, memory, plan, among_all(log, 100)))
  assert results[0][1].shape == (120,)
  np.testing.assert_array_equal(results[0][1], results[1][1])
  for side in ('user', 'item'):
    np.testing.assert_allclose(
      getattr(results[0][0], side).state,
      getattr(results[1][0], side).state,
      rtol=1e-5,
      atol=1e-5,
    )


@pytest.mark.slow
def test_a_sample_of_batches_ranks_as_all_of_them_do():
  log = logs.random_log(6, num_events=120)
  system = tiny_runs.make_system(variants.tiny_config('jodie'))
  inputs = logs.random_inputs(log, padding=16)
  plan = batching.plan_batches(log.times, 0, log.num_events, 16)
  params, memory = jax.jit(system.init, static_argnums=2)(
    jax.random.key(0), inputs, 16 * plan.num_parts
  )
  bound = BoundSystem(system, params, inputs)
  chosen = evaluate.sample_batches(plan, 40)
  sizes = plan.batches.size
  assert 40 <= sizes[chosen].sum() < 40 + 16
  assert evaluate.sample_batches(plan, 0).all()
  run = lambda some: evaluate.replay(
    bound, memory, plan, among_all(log, 100), chosen=some
  )
  (end, ranks), (end_sampled, sampled) = run(None), run(chosen)
  np.testing.assert_array_equal(sampled, ranks[np.repeat(chosen, sizes)])
  variants.assert_trees_equal(end_sampled, end)


@pytest.mark.slow
def test_pure_noise_gives_chance_recall():
  """Users take items at random: nothing learned may help on the test split."""
  log = logs.random_log(
    5, num_users=40, num_items=50, num_events=2000, num_times=1500
  )
  config = variants.tiny_config('dynllm+text+counts')
  run = tiny_runs.prepare(config, log, batch=64)
  state = run.first_state()
  for _ in range(3):
    state, _ = run.epoch(state)
  _, ranks = run.rank_later_events(state)
  chance = 10 / log.num_items
  error = math.sqrt(chance * (1 - chance) / len(ranks))
  assert abs(np.mean(ranks <= 10) - chance) < 4 * error


def test_groups_of_events_against_a_plain_reading():
  log = logs.random_log(4)
  groups = metrics.event_groups(log)
  train_events = list(zip(log.users, log.items))[: log.train_end]
  counts = [
    sum(i == x for _, i in train_events) for x in range(1, log.num_items + 1)
  ]
  order = sorted(range(1, log.num_items + 1), key=lambda x: -counts[x - 1])
  head = set(order[: log.num_items // 5])
  for k, (user, item, time) in enumerate(zip(log.users, log.items, log.times)):
    earlier = [
      (u, i) for u, i, t in zip(log.users, log.items, log.times) if t < time
    ]
    assert groups['new_user'][k] == all(u != user for u, _ in train_events)
    assert groups['new_item'][k] == all(i != item for _, i in train_events)
    assert groups['repeat'][k] == ((user, item) in earlier)
    assert groups['head'][k] == (item in head)
    assert groups['tail'][k] == (item not in head)


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('ks', (9,), '9.*8'),
    ('ks', (), 'one number or more'),
    ('block_size', 0, 'block_size'),
  ],
)
def test_a_ranking_that_cannot_be_is_refused(field, value, words):
  config = variants.tiny_config('dynllm')
  config.eval[field] = value
  with pytest.raises(InputError, match=words):
    ranking.make_ranking(config, logs.random_log(0))
  with pytest.raises(InputError, match='candidates.*all, future'):
    ranking.candidate_mask(logs.random_log(0), 'some')


def test_texts_that_are_mapped_once_give_the_ranks_of_those_that_are_not():
  run = tiny_runs.prepare(variants.tiny_config('dynllm'))
  state = run.first_state()
  assert run.system.map_texts is not None
  trainer = run.trainer._replace(system=run.system._replace(map_texts=None))
  ranks = [
    each.rank_later_events(state)[1]
    for each in (run, run._replace(trainer=trainer))
  ]
  np.testing.assert_array_equal(*ranks)


def test_tables_are_those_of_the_memory_and_change_no_rank(monkeypatch):
  run = tiny_runs.prepare(variants.tiny_config('tgn'))
  state, log, size = run.first_state(), run.log, run.plan.batch_size
  bound = BoundSystem(run.system, state.params, run.inputs)
  before = evaluate.with_tables(
    bound, evaluate.start_replay(bound, state.memory, size)
  )
  first = jax.tree.map(np.asarray, before.tables)
  chunk = batching.chunks(run.plan, len(run.plan.batches))[0]
  after, *_ = evaluate.replay_chunk(
    *(bound, None, before, chunk.batches, np.zeros(len(chunk.batches), bool)),
    batch_size=size,
  )

  # Rows that a batch wrote are renewed, and no other row has changed.
  fresh = after._replace(tables=None)
  expected = evaluate.with_tables(bound, fresh).tables
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(near, after.tables, expected)
  seen = np.unique(log.users[: log.train_end])
  found, old = np.asarray(after.tables.user.key), first.user.key
  assert np.all(np.any(found[seen] != old[seen], axis=1))
  others = np.setdiff1d(np.arange(len(found)), seen)
  np.testing.assert_array_equal(found[others], old[others])

  _, with_tables = run.rank_later_events(run.first_state())
  monkeypatch.setattr(evaluate, '_MOST_TABLE_BYTES', 0)
  assert evaluate.with_tables(bound, fresh).tables is None
  _, without = run.rank_later_events(run.first_state())
  np.testing.assert_array_equal(with_tables, without)
