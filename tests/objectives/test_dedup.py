"""What a batch has twice is embedded once, and nothing comes out otherwise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import ranking
from dynllm_jax.engine.training_step import train_step
from dynllm_jax.objectives import dedup
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import PlannedBatch
from tests.testing import logs
from tests.testing import tiny_runs
from tests.testing import variants

BATCH = 128


def invoices(seed=3):
  """A log in which a user takes some eight items at a time."""
  return logs.random_log(
    seed, num_users=6, num_items=40, num_events=800, num_times=20
  )


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('size', [BATCH, 50, 1, 0])
def test_visits_are_the_distinct_users_and_times(seed, size):
  log = invoices(seed)
  inputs = logs.random_inputs(log, padding=BATCH)
  batch = batching.slice_batch(inputs, PlannedBatch(100, size, 0, True), BATCH)
  users, times, visit = dedup.unique_visits(batch, 64)
  np.testing.assert_array_equal(users[visit], batch.users)
  np.testing.assert_array_equal(times[visit], batch.times)
  expected = set(zip(np.array(batch.users), np.array(batch.times)))
  assert len(set(np.array(visit))) == len(expected)
  spare = np.setdiff1d(np.arange(64), visit)
  assert not np.asarray(users)[spare].any()
  np.testing.assert_array_equal(np.asarray(times)[spare], batch.times[0])


@pytest.mark.parametrize('size', [BATCH, 50, 0])
def test_items_are_the_distinct_ones(size):
  items = jnp.where(
    jnp.arange(BATCH) < size, jnp.asarray(invoices().items[:BATCH]), 0
  )
  own, place = dedup.unique_items(items, 64)
  np.testing.assert_array_equal(own[place], items)
  assert len(set(np.array(place))) == len(set(np.array(items)))
  assert not np.asarray(own)[np.setdiff1d(np.arange(64), place)].any()


def test_a_plan_knows_how_much_of_a_batch_is_distinct_at_most(monkeypatch):
  monkeypatch.setattr(dedup, 'STEP', 1)
  log = invoices()
  plan = batching.plan_batches(log.times, 0, log.num_events, BATCH)
  events = [range(b.start, b.start + b.size) for b in plan.batches]
  visits = max(len({(log.users[k], log.times[k]) for k in e}) for e in events)
  items = max(len({log.items[k] for k in e}) for e in events)
  assert batching.with_dedup_limits(plan, log).dedup_limits == (
    visits + 1,
    items + 1,
  )
  # Where no two events share a thing, batches are left as they are.
  apart = logs.make_log([1, 2] * 20, np.arange(1, 41), np.arange(40))
  plan = batching.plan_batches(apart.times, 0, 40, 8)
  assert batching.with_dedup_limits(plan, apart).dedup_limits == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['dynllm+text+counts', 'jodie'])
def test_a_step_and_its_ranks_are_those_of_single_events(variant):
  """So is what the regularizer adds."""
  config = variants.tiny_config(variant)
  config.model.dropout = 0.0
  config.train.regularization = 0.01
  run = tiny_runs.prepare(config, invoices(), batch=BATCH)
  log, inputs, plan, trainer = run
  assert plan.dedup_limits == (64, 64)
  step = jax.jit(functools.partial(train_step, trainer))
  data = [
    feeds.EpochData(inputs, None, BATCH, limits)
    for limits in (dedup.DedupLimits(), plan.dedup_limits)
  ]
  state = run.first_state()
  for planned in plan.batches[:3]:
    one_by_one, (expected, _) = step(data[0], state, planned)
    state, (loss, _) = step(data[1], state, planned)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for actual, wanted in zip(
      jax.tree.leaves((state.memory, state.pending)),
      jax.tree.leaves((one_by_one.memory, one_by_one.pending)),
    ):
      np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-5)
    # Adam divides by a gradient's size, so that its moments are compared.
    moments, wanted_moments = (
      [leaf for leaf in jax.tree.leaves(s.opt_state) if leaf.ndim]
      for s in (state, one_by_one)
    )
    for actual, wanted in zip(moments, wanted_moments):
      np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-6)

  bound = BoundSystem(run.system, state.params, inputs)
  among_all = ranking.Ranking(ranking.candidate_mask(log, 'all'), 16)
  plans = evaluate.split_plans(run.system, log, BATCH)
  assert {p.dedup_limits for p in plans.values()} == {(64, 0)}
  ranks = [
    evaluate.replay(
      bound,
      run.system.reset(state.memory),
      plans['train']._replace(dedup_limits=dedup.DedupLimits(count)),
      among_all,
    )[1]
    for count in (0, 64)
  ]
  np.testing.assert_array_equal(*ranks)
