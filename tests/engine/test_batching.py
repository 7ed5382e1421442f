"""Plans of batches against what they promise."""

import collections
import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from dynllm_jax.engine import batching
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


def test_a_chunk_is_given_when_the_next_has_begun():
  seen = []

  def begin():
    for number in range(3):
      seen.append(('begun', number))
      yield number

  for number in batching.one_behind(begin()):
    seen.append(('read', number))
  begun, read = (
    [('begun', number) for number in range(3)],
    [('read', number) for number in range(3)],
  )
  assert seen == [*begun[:2], read[0], begun[2], *read[1:]]
  assert list(batching.one_behind([])) == []
