"""Batches, negatives and pending events, against their contracts."""

import collections
import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import negatives
from dynllm_jax.types import EventBatch
from dynllm_jax.types import InputError
from dynllm_jax.types import PlannedBatch
from tests.testing import logs

# Sizes of consecutive groups of equal times, and a batch size.
GROUPS = st.lists(st.integers(1, 9), max_size=12)
BATCH = st.integers(1, 7)
NO_EVENT = [0, 0]  # around the split, as it lies inside a log


def times_of(groups):
  return np.repeat(np.arange(len(groups)), groups)


def inside_a_log(groups):
  """The times of a log that has the split from position 2 on."""
  return np.concatenate([NO_EVENT, 1 + times_of(groups), [99, 99]])


def check_plan(plan, times, start, end):
  """What both plans promise; events are positions in the log."""
  batches = [list(range(b.start, b.start + b.size)) for b in plan.batches]
  assert list(itertools.chain(*batches)) == list(range(start, end))
  assert all(0 < len(batch) <= plan.batch_size for batch in batches)
  group = lambda event: list(times[start:end]).count(times[event])
  part = 0
  for batch, planned in zip(batches, plan.batches):
    closed = batch[-1] + 1 == end or times[batch[-1]] < times[batch[-1] + 1]
    ready = planned.ready
    assert ready == closed
    assert planned.part == part
    if part or not ready:  # a part holds one time, of a group too large
      assert len({times[event] for event in batch}) == 1
      assert group(batch[0]) > plan.batch_size
    if not ready:
      assert len(batch) == plan.batch_size
    part = 0 if ready else part + 1
  sizes = collections.Counter(times[start:end]).values()
  assert plan.num_split_groups == sum(n > plan.batch_size for n in sizes)
  assert plan.num_parts == max(
    [-(-n // plan.batch_size) for n in sizes], default=1
  )


@given(GROUPS, BATCH)
@settings(max_examples=200)
def test_plan_batches(groups, batch_size):
  times = inside_a_log(groups)
  plan = batching.plan_batches(times, 2, len(times) - 2, batch_size)
  assert plan.batch_size == batch_size
  check_plan(plan, times, 2, len(times) - 2)


@given(GROUPS, BATCH)
@settings(max_examples=100)
def test_a_batch_is_as_long_as_whole_groups_allow(groups, batch_size):
  times = times_of(groups)
  plan = batching.plan_batches(times, 0, len(times), batch_size)
  for planned in plan.batches:
    after = planned.start + planned.size
    if planned.ready and planned.part == 0 and after < len(times):
      next_group = np.sum(times == times[after])
      assert planned.size + next_group > batch_size


def test_plan_batches_by_hand():
  times = np.array([0, 0, 1, 2, 2, 2, 2, 2, 3])
  plan = batching.plan_batches(times, 0, 9, 3)
  assert plan.batches.start.tolist() == [0, 3, 6, 8]
  assert plan.batches.size.tolist() == [3, 3, 2, 1]
  assert plan.batches.part.tolist() == [0, 0, 1, 0]
  assert plan.batches.ready.tolist() == [True, False, True, True]
  assert (plan.num_parts, plan.num_split_groups) == (2, 1)


def test_a_split_without_events_has_no_batch():
  for plan in (
    batching.plan_batches(np.array([0, 1]), 1, 1, 4),
    batching.plan_by_time(np.array([0, 1]), 1, 1),
  ):
    assert len(plan.batches) == 0
    assert plan.num_parts == 1
    assert batching.chunks(plan, 3) == []


def test_plan_batches_names_a_bad_size():
  with pytest.raises(InputError, match='batch_size: 0'):
    batching.plan_batches(np.array([0]), 0, 1, 0)


@given(GROUPS)
@settings(max_examples=100)
def test_plan_by_time_advances_at_every_time(groups):
  times = inside_a_log(groups)
  plan = batching.plan_by_time(times, 2, len(times) - 2)
  check_plan(plan, times, 2, len(times) - 2)
  assert int(plan.batches.ready.sum()) == len(groups)
  for planned in plan.batches:
    events = slice(planned.start, planned.start + planned.size)
    assert len(set(times[events])) == 1


def test_plan_by_time_cuts_a_very_large_group():
  times = np.zeros(batching.MAX_ROWS_BY_TIME * 3 + 1, int)
  plan = batching.plan_by_time(times, 0, len(times))
  assert plan.batch_size <= batching.MAX_ROWS_BY_TIME
  check_plan(plan, times, 0, len(times))


@given(GROUPS, BATCH, st.integers(1, 5))
@settings(max_examples=50)
def test_chunks_pad_with_batches_of_nothing(groups, batch_size, length):
  times = times_of(groups)
  plan = batching.plan_batches(times, 0, len(times), batch_size)
  cut = batching.chunks(plan, length)
  assert len(cut) == -(-len(plan.batches) // length)
  assert all(len(chunk.batches) == length for chunk in cut)
  for field in ('start', 'size', 'part', 'ready'):
    joined = [x for chunk in cut for x in getattr(chunk.batches, field)]
    real, pad = joined[: len(plan.batches)], joined[len(plan.batches) :]
    assert real == getattr(plan.batches, field).tolist()
    if field in ('size', 'ready'):
      assert not any(pad)


_slice_batch = jax.jit(batching.slice_batch, static_argnums=2)


def test_slice_batch_reads_the_log_and_pads():
  log = logs.random_log(0)
  inputs = logs.random_inputs(log, padding=8)
  for start, size in ((0, 8), (13, 5), (57, 3), (59, 1), (0, 0)):
    batch = _slice_batch(inputs, PlannedBatch(start, size, 0, True), 8)
    pad = 8 - size
    rows = slice(start, start + size)
    assert batch.mask.tolist() == [True] * size + [False] * pad
    assert batch.users.tolist() == log.users[rows].tolist() + [0] * pad
    assert batch.items.tolist() == log.items[rows].tolist() + [0] * pad
    assert (
      batch.times.tolist()
      == log.times[rows].tolist() + [log.times[start]] * pad
    )


# ------------------------------------------------------------------ negatives


def taken_by_event(log):
  """For each event, the items its user takes at that very time."""
  return [
    {
      int(i)
      for u, i, t in zip(log.users, log.items, log.times)
      if (u, t) == (user, time)
    }
    for user, time in zip(log.users, log.times)
  ]


_negatives = jax.jit(negatives.sample_negatives, static_argnums=(3, 4))


@pytest.mark.parametrize('how', negatives.NEGATIVES)
def test_own_negatives_are_never_taken_then(how):
  log = logs.random_log(1, num_users=3, num_items=9, num_times=4)
  inputs = logs.random_inputs(log)
  events = jnp.arange(log.num_events)
  taken = taken_by_event(log)
  assert max(map(len, taken)) >= 6  # few items are left to these
  refused = 0
  for seed in range(5):
    items, allowed = map(
      np.asarray,
      _negatives(
        jax.random.key(seed), inputs, events, (log.num_events, 5), how
      ),
    )
    assert items.shape == allowed.shape == (log.num_events, 5)
    for event in range(log.num_events):
      for item, fine in zip(items[event].tolist(), allowed[event].tolist()):
        assert 1 <= item <= log.num_items
        assert fine == (item not in taken[event])
    refused += int(np.sum(~allowed))
  # A single try would be refused as often as its item is taken.
  assert refused < sum(5 * 5 * (len(t) / log.num_items) ** 2 for t in taken)


@pytest.mark.parametrize('how', negatives.NEGATIVES)
def test_shared_negatives_are_masked_where_taken(how):
  log = logs.random_log(2, num_users=3, num_items=9, num_times=4)
  inputs = logs.random_inputs(log)
  taken = taken_by_event(log)
  items, allowed = _negatives(
    jax.random.key(0), inputs, jnp.arange(log.num_events), (30,), how
  )
  assert items.shape == (30,)
  assert np.asarray(allowed).tolist() == [
    [item not in own for item in items.tolist()] for own in taken
  ]


def test_a_user_who_takes_everything_has_no_negative():
  log = logs.make_log([1, 1, 1, 1], [1, 2, 3, 1], [0, 0, 0, 7])
  items, allowed = _negatives(
    jax.random.key(0),
    logs.random_inputs(log),
    jnp.arange(4),
    (4, 16),
    'uniform',
  )
  assert not np.any(allowed[:3])
  assert np.all(allowed[3]) and 1 not in items[3].tolist()


def assert_drawn_like(items, weights):
  """Chi-square of draws against weights, five standard deviations allowed."""
  counts = np.bincount(np.ravel(items), minlength=len(weights))
  expected = counts.sum() * np.asarray(weights) / np.sum(weights)
  assert not counts[expected == 0].any()
  kept = expected > 0
  square = np.sum((counts - expected)[kept] ** 2 / expected[kept])
  freedom = kept.sum() - 1
  assert square < freedom + 5 * (2 * freedom) ** 0.5


def popular_log():
  """Item k has k training events; item 5 is new after training."""
  items = [1] + [2] * 2 + [3] * 3 + [4] * 8 + [5] * 6
  log = logs.make_log([1] * 20, items, list(range(20)), num_items=6)
  assert log.train_end == 14
  return log


@pytest.mark.parametrize('shape', [(20, 400), (8000,)])
def test_uniform_is_uniform_over_the_catalogue(shape):
  log = popular_log()
  inputs = logs.random_inputs(log)
  items, allowed = map(
    np.asarray,
    _negatives(jax.random.key(3), inputs, jnp.arange(20), shape, 'uniform'),
  )
  if len(shape) == 1:
    assert_drawn_like(items, [0, 1, 1, 1, 1, 1, 1])
  else:
    for item, rows in ((4, slice(6, 14)), (5, slice(14, 20))):
      assert_drawn_like(
        items[rows][allowed[rows]],
        [0] + [float(k != item) for k in range(1, 7)],
      )


@pytest.mark.parametrize('shape', [(20, 400), (8000,)])
def test_popularity_is_proportional_to_training_events(shape):
  inputs = logs.random_inputs(popular_log())
  items, _ = _negatives(
    jax.random.key(4), inputs, jnp.arange(20), shape, 'popularity'
  )
  # Events 14 to 19 take item 5, so that no draw of theirs is refused.
  drawn = items if len(shape) == 1 else items[14:]
  assert_drawn_like(drawn, [0, 1, 2, 3, 8, 0, 0])


def test_negatives_follow_the_key():
  log = logs.random_log(1, num_users=3, num_items=9, num_times=4)
  inputs = logs.random_inputs(log)
  draw = lambda seed: np.asarray(
    _negatives(
      jax.random.key(seed), inputs, jnp.arange(60), (60, 5), 'uniform'
    )[0]
  )
  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0) != draw(1)).any()


# -------------------------------------------------------------------- pending


def as_batch(events, size):
  """A batch of these events (user, item, time), and padding up to `size`."""
  pad = [(0, 0, 0)] * (size - len(events))
  users, items, times = np.array([*events, *pad], np.int32).T
  return EventBatch(
    jnp.asarray(users),
    jnp.asarray(items),
    jnp.asarray(times),
    jnp.arange(size) < len(events),
  )


def held(pending):
  """The events of a pending batch, with the number that marks their vectors."""
  events = pending.events
  return [
    (int(u), int(i), int(t), float(x[0]), float(y[0]))
    for u, i, t, m, x, y in zip(
      events.users,
      events.items,
      events.times,
      events.mask,
      pending.user_vectors,
      pending.item_vectors,
    )
    if m
  ]


_add_pending = jax.jit(pending_updates.add_pending)
_due = jax.jit(pending_updates.due)


@given(GROUPS, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_pending_collects_the_parts_of_a_group(groups, random):
  times = times_of(groups)
  events = [(random.randint(1, 5), random.randint(1, 5), int(t)) for t in times]
  plan = batching.plan_batches(times, 0, len(times), 3)
  pending = pending_updates.empty_pending(9, 2, 3)  # three parts of three
  assert held(pending) == [] and held(_due(pending, True)) == []
  waiting, applied = [], []
  for planned in plan.batches:
    rows = list(range(planned.start, planned.start + planned.size))
    mark = jnp.zeros(3).at[: len(rows)].set(jnp.array(rows, jnp.float32))
    pending = _add_pending(
      pending,
      as_batch([events[k] for k in rows], 3),
      jnp.tile(mark[:, None], 2),
      -jnp.tile(mark[:, None], 3),
      planned,
    )
    now = [(*events[k], float(k), -float(k)) for k in rows]
    waiting = now if planned.part == 0 else waiting + now
    assert held(pending) == waiting
    assert held(_due(pending, True)) == (waiting if planned.ready else [])
    assert held(_due(pending, False)) == []
    applied += held(_due(pending, True))
  assert [event[:3] for event in applied] == events


def test_pending_vectors_carry_no_gradient():
  batch = as_batch([(1, 1, 0)], 1)

  def total(x):
    pending = pending_updates.add_pending(
      pending_updates.empty_pending(1, 2, 2),
      batch,
      x,
      x * 2,
      PlannedBatch(0, 1, 0, True),
    )
    return jnp.sum(pending.user_vectors + pending.item_vectors)

  assert float(total(jnp.ones([1, 2]))) == 2 * (1 + 2)
  assert not np.any(jax.grad(total)(jnp.ones([1, 2])))
