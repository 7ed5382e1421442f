"""Chronological batches that never show an event its own time (SPEC 5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax import distinct as distinct_lib
from dynllm_jax import rows as rows_lib
from dynllm_jax.graph import takes_at_that_time
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory


NEGATIVES = ('uniform', 'popularity')
MAX_ROWS_BY_TIME = 256  # of a batch of `plan_by_time`


class BatchPlan(NamedTuple):
  """Where each batch of a split lies in the log.

  A batch ends at the end of a group of equal times where one fits. A larger
  group is cut into parts that share one state; only its last part is `ready`.
  A batch of no events is padding: scans over it change nothing.
  """
  start: np.ndarray  # i32[batches], position in the log
  size: np.ndarray  # i32[batches]
  part: np.ndarray  # i32[batches], number of the part within its group
  ready: np.ndarray  # bool[batches], whether updates follow
  batch_size: int  # rows of a batch, padding included
  num_parts: int  # parts of the largest group
  num_split_groups: int  # groups larger than a batch
  # Positions in the log, -1 for none: `start` and `size` count its rows. None
  # where they count the events of the log itself (feeds.py).
  events: np.ndarray | None = None  # i32[rows] or i32[rows, sequence_length]
  distinct: distinct_lib.Distinct = distinct_lib.Distinct()

  @property
  def capacity(self) -> int:
    """Events that `Pending` holds in training; one where none ever waits."""
    return self.batch_size * self.num_parts if self.events is None else 1


def plan_batches(
    times: np.ndarray, start: int, end: int, batch_size: int) -> BatchPlan:
  """Cuts a split into batches.

  Args:
    times: i64[events], the log's times.
    start, end: the split, which cuts no group of equal times.
    batch_size: events in a batch at most.

  Returns:
    The plan.

  Raises:
    InputError: if the batch size is not positive.
  """
  if batch_size < 1:
    raise InputError(f'batch_size: {batch_size} is not allowed; 1 or more')
  split = times[start:end]
  bounds = np.flatnonzero(np.diff(split)) + 1  # where a new time begins
  bounds = np.concatenate([bounds, [len(split)]]) if len(split) else []
  rows, split_groups, at = [], 0, 0
  while at < len(split):
    fits = np.searchsorted(bounds, at + batch_size, side='right') - 1
    stop = bounds[fits] if fits >= 0 else 0
    if stop > at:
      rows.append((start + at, stop - at, 0, True))
    else:
      stop = bounds[np.searchsorted(bounds, at, side='right')]
      split_groups += 1
      cuts = [*range(at, stop, batch_size), stop]
      rows += [
          (start + low, high - low, part, high == stop)
          for part, (low, high) in enumerate(zip(cuts, cuts[1:]))]
    at = stop
  columns = list(zip(*rows)) or [(), (), (), ()]
  return BatchPlan(
      start=np.array(columns[0], np.int32),
      size=np.array(columns[1], np.int32),
      part=np.array(columns[2], np.int32),
      ready=np.array(columns[3], bool),
      batch_size=batch_size,
      num_parts=max(columns[2], default=0) + 1,
      num_split_groups=split_groups)


def plan_by_time(times: np.ndarray, start: int, end: int) -> BatchPlan:
  """One batch for every distinct time, for systems that advance at each.

  The number of rows is the one that computes least: rows, padding included,
  plus the cost of a step of the scan, taken as eight rows.
  """
  _, groups = np.unique(times[start:end], return_counts=True)
  sizes = [1 << power for power in range(MAX_ROWS_BY_TIME.bit_length())]
  work = [np.sum(-(-groups // size)) * (size + 8) for size in sizes]
  size = sizes[int(np.argmin(work))]
  parts = -(-groups // size)
  first = np.repeat(np.cumsum(groups) - groups, parts)
  part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
  left = np.repeat(groups, parts) - part * size
  return BatchPlan(
      start=(start + first + part * size).astype(np.int32),
      size=np.minimum(left, size).astype(np.int32),
      part=part.astype(np.int32),
      ready=left <= size,
      batch_size=size,
      num_parts=int(parts.max(initial=1)),
      num_split_groups=int(np.sum(parts > 1)))


def with_distinct(plan: BatchPlan, log: EventLog) -> BatchPlan:
  """A plan of a log's events that knows what its batches have twice."""
  return plan._replace(distinct=distinct_lib.count(
      log, plan.start, plan.size, plan.batch_size))


def chunks(plan: BatchPlan, length: int) -> list[BatchPlan]:
  """Cuts a plan into equal runs of batches, the last one padded.

  Args:
    plan: the plan.
    length: batches in a run.

  Returns:
    Plans of `length` batches each.
  """
  count = -(-len(plan.start) // length)
  pad = (0, count * length - len(plan.start))
  columns = [
      np.pad(c, pad).reshape(count, length)
      for c in (plan.start, plan.size, plan.part, plan.ready)]
  return [
      plan._replace(start=s, size=n, part=p, ready=r)
      for s, n, p, r in zip(*columns)]


def take_batch(
    inputs: Inputs, start: Array, size: Array, batch_size: int) -> EventBatch:
  """Reads a batch from the log on the device.

  Args:
    inputs: for the log, which is padded by at least `batch_size` rows.
    start: i32[].
    size: i32[].
    batch_size: rows, padding included.

  Returns:
    EventBatch [batch_size]; padding rows have ids 0 and the time of the first
    event, so that no query reaches past the batch.
  """
  mask = jnp.arange(batch_size) < size

  users, items, times = rows_lib.cut(
      (inputs.users, inputs.items, inputs.times), start, batch_size)
  return EventBatch(
      users=jnp.where(mask, users, 0),
      items=jnp.where(mask, items, 0),
      times=jnp.where(mask, times, times[0]),
      mask=mask)


def sample_negatives(
    key: Array, inputs: Inputs, events: Array, shape: tuple[int, ...],
    how: str) -> tuple[Array, Array]:
  """Draws negatives, none an item that the user takes at that time (SPEC 3.9).

  Args:
    key: random key.
    inputs: for the catalogue, the training events and the user's own items.
    events: i32[batch], positions in the log.
    shape: [batch, negatives] for negatives of each event's own, or [negatives]
      where the batch shares them.
    how: 'uniform' over the catalogue, or 'popularity', in proportion to
      training events.

  Returns:
    i32[shape] items, and bool[batch, negatives], which of them are allowed.
  """
  tries = 4 if len(shape) == 2 else 1  # a shared one may suit other rows
  if how == 'popularity':
    drawn = rows_lib.take(inputs.items, jax.random.randint(
        key, (tries, *shape), 0, inputs.train_events))
  else:
    drawn = jax.random.randint(
        key, (tries, *shape), 1, inputs.num_items + 1, jnp.int32)
  if len(shape) == 1:
    each = jnp.broadcast_to(drawn[0], (len(events), *shape))
    return drawn[0], ~takes_at_that_time(inputs.same_time, events, each)
  each = jnp.moveaxis(drawn, 0, 1)
  taken = takes_at_that_time(
      inputs.same_time, events, each.reshape(len(events), -1))
  taken = jnp.moveaxis(taken.reshape(each.shape), 1, 0)
  # The first try that is allowed; the last one, not allowed, if none is.
  first = jnp.where(taken.all(0), tries - 1, jnp.argmin(taken, axis=0))
  chosen = jnp.take_along_axis(drawn, first[None], axis=0)[0]
  return chosen, ~taken.all(0)


def empty_pending(capacity: int, user_dim: int, item_dim: int) -> Pending:
  """A pending batch without events."""
  # Three arrays of their own: a buffer can be given away only once.
  users, items, times = (jnp.zeros([capacity], jnp.int32) for _ in range(3))
  return Pending(
      events=EventBatch(users, items, times, jnp.zeros([capacity], bool)),
      user_vectors=jnp.zeros([capacity, user_dim]),
      item_vectors=jnp.zeros([capacity, item_dim]),
      ready=jnp.array(False))


def pending_of(
    system: System, params: Params, memory: SystemMemory, inputs: Inputs,
    capacity: int) -> Pending:
  """A pending batch without events, as wide as a system's vectors."""
  one = jnp.zeros([1], jnp.int32)

  def embed_one(params, memory, inputs):
    memory = system.propagate(params, memory, inputs, None)
    return system.embed(
        params, memory, inputs, one, one, one, one[0], None)

  users, items = jax.eval_shape(embed_one, params, memory, inputs)
  return empty_pending(
      capacity, users.vector.shape[-1], items.vector.shape[-1])


def add_pending(
    pending: Pending, batch: EventBatch, user_vectors: Array,
    item_vectors: Array, part: Array, ready: Array) -> Pending:
  """Adds a scored batch; the first part of a group replaces what was there.

  Args:
    pending: capacity a multiple of the batch.
    batch: the events.
    user_vectors: f32[batch, dim], `h_u(t)`.
    item_vectors: f32[batch, dim], `h_i(t_B)`.
    part: i32[], the batch's place in its group of equal times.
    ready: bool[], whether it is the group's last part.

  Returns:
    Pending; its vectors carry no gradient.
  """
  at = part * len(batch.mask)

  def put(old, new):
    new = jax.lax.stop_gradient(new)
    return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0)

  keep = pending.events.mask & (part > 0)
  events = jax.tree.map(put, pending.events.replace(mask=keep), batch)
  return Pending(
      events=events,
      user_vectors=put(pending.user_vectors, user_vectors),
      item_vectors=put(pending.item_vectors, item_vectors),
      ready=ready)


def due(pending: Pending, real: Array) -> Pending:
  """The pending events whose update may be applied: all of them, or none.

  Args:
    pending: what waits.
    real: bool[], False in a padding step of a scan, which changes nothing.

  Returns:
    Pending with the mask of what is due.
  """
  mask = pending.events.mask & pending.ready & real
  return pending.replace(events=pending.events.replace(mask=mask))
