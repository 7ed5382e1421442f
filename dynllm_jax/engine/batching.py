"""Chronological batches that never show an event its own time (SPEC 5)."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax import checks
from dynllm_jax.objectives import dedup
from dynllm_jax.parallel import owners
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import Inputs
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import ROOM_FOR_ALL

_Chunk = TypeVar('_Chunk')
MAX_ROWS_BY_TIME = 256  # of a batch of `plan_by_time`


class BatchPlan(NamedTuple):
  """How a split is cut into batches.

  A batch ends at the end of a group of equal times where one fits. A larger
  group is cut into parts that share one state.

  Attributes:
    batches: where each batch lies, columns [batches].
    batch_size: rows of a batch, padding included.
    num_parts: parts of the largest group of equal times.
    num_split_groups: groups larger than a batch.
    events: i32[rows] or i32[rows, sequence_length], positions in the log, -1
      for none. A batch is then a range of its rows (feeds.py); None where a
      batch is a range of the log itself.
    dedup_limits: how many distinct visits and items a batch has at most.
    own_limits: how much of an update falls to one device of the mesh.
  """

  batches: PlannedBatch
  batch_size: int
  num_parts: int
  num_split_groups: int
  events: np.ndarray | None = None
  dedup_limits: dedup.DedupLimits = dedup.DedupLimits()
  own_limits: OwnLimits = ROOM_FOR_ALL

  @property
  def capacity(self) -> int:
    """Events that `Pending` holds in training; one where none ever waits."""
    return self.batch_size * self.num_parts if self.events is None else 1


def plan_batches(
  times: np.ndarray, start: int, end: int, batch_size: int
) -> BatchPlan:
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
    raise checks.not_allowed('batch_size', batch_size, '1 or more')

  split = times[start:end]
  # Where a group of equal times ends and the next one begins.
  bounds = np.append(np.flatnonzero(np.diff(split)) + 1, len(split))

  # A batch has as many whole groups as fit; a larger group is cut into parts.
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
        for part, (low, high) in enumerate(zip(cuts, cuts[1:]))
      ]
    at = stop

  start, size, part, ready = list(zip(*rows)) or [(), (), (), ()]
  return BatchPlan(
    PlannedBatch(
      start=np.array(start, np.int32),
      size=np.array(size, np.int32),
      part=np.array(part, np.int32),
      ready=np.array(ready, bool),
    ),
    batch_size=batch_size,
    num_parts=max(part, default=0) + 1,
    num_split_groups=split_groups,
  )


def plan_by_time(times: np.ndarray, start: int, end: int) -> BatchPlan:
  """One batch for every distinct time, for systems that advance at each.

  The batch size is the power of two that makes a replay cheapest, where a batch
  costs its rows, padding included, and a step of the scan as much as eight
  rows. A larger group of equal times is cut into parts.

  Args:
    times: i64[events], the log's times.
    start, end: the split, which cuts no group of equal times.

  Returns:
    The plan.
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
    PlannedBatch(
      start=(start + first + part * size).astype(np.int32),
      size=np.minimum(left, size).astype(np.int32),
      part=part.astype(np.int32),
      ready=left <= size,
    ),
    batch_size=size,
    num_parts=int(parts.max(initial=1)),
    num_split_groups=int(np.sum(parts > 1)),
  )


def with_dedup_limits(plan: BatchPlan, log: EventLog) -> BatchPlan:
  """The plan, with the most distinct visits and items that a batch has."""
  limits = dedup.limits_of(log, plan.batches, plan.batch_size)
  return plan._replace(dedup_limits=limits)


def with_own_limits(
  plan: BatchPlan, log: EventLog, mesh: jax.sharding.Mesh | None
) -> BatchPlan:
  """The plan, with how much of an update falls to one device of a mesh."""
  if mesh is None or plan.events is not None:  # then nothing ever waits
    return plan
  limits = owners.limits_of(log, plan.batches, plan.batch_size, mesh)
  return plan._replace(own_limits=limits)


def chunks(plan: BatchPlan, length: int) -> list[BatchPlan]:
  """Cuts a plan into chunks of equal length, the last one padded.

  Args:
    plan: the plan.
    length: batches in a chunk.

  Returns:
    Plans of `length` batches each.
  """
  padding = -len(plan.batches) % length
  padded = jax.tree.map(lambda x: np.pad(x, (0, padding)), plan.batches)
  return [
    plan._replace(batches=padded[first : first + length])
    for first in range(0, len(padded), length)
  ]


def one_behind(begun: Iterable[_Chunk]) -> Iterator[_Chunk]:
  """Gives each chunk when the next one has begun.

  Whoever reads a result waits for the device. So a chunk's results are read
  when the device has the next one to do, and never waits itself.

  Args:
    begun: hands a chunk to the device each time that it is asked.

  Yields:
    What `begun` yields, one later.
  """
  waiting: list[_Chunk] = []
  for chunk in begun:
    waiting.append(chunk)
    if len(waiting) > 1:
      yield waiting.pop(0)
  yield from waiting


def slice_batch(
  inputs: Inputs, planned: PlannedBatch, batch_size: int
) -> EventBatch:
  """Reads a batch from the log on the device.

  Args:
    inputs: for the log, which is padded by at least `batch_size` rows.
    planned: which events of the log.
    batch_size: rows, padding included.

  Returns:
    EventBatch [batch_size]; padding rows have ids 0 and the time of the first
    event, so that no query reaches past the batch.
  """
  mask = jnp.arange(batch_size) < planned.size
  users, items, times = sharded_table.read_slice(
    (inputs.users, inputs.items, inputs.times), planned.start, batch_size
  )
  return EventBatch(
    users=jnp.where(mask, users, 0),
    items=jnp.where(mask, items, 0),
    times=jnp.where(mask, times, times[0]),
    mask=mask,
  )
