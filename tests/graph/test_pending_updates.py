"""Pending events: groups in parts, and no gradient (SPEC 4)."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.graph import pending_updates
from dynllm_jax.types import EventBatch
from dynllm_jax.types import PlannedBatch

# Sizes of consecutive groups of equal times.
GROUPS = st.lists(st.integers(1, 9), max_size=12)


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
  times = np.repeat(np.arange(len(groups)), groups)
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
