"""How training reads the log: in order, shuffled, or a sequence at a time.

Everything that tells one feed from another is here. The plan of a feed that is
not chronological holds a table of positions in the log; an epoch walks through
its rows in an order of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax import checks
from dynllm_jax.engine import batching
from dynllm_jax.engine.batching import BatchPlan
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import dedup
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import Inputs
from dynllm_jax.types import Loss
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import Pytree
from dynllm_jax.types import ROOM_FOR_ALL
from dynllm_jax.types import static_field
from dynllm_jax.types import System

FEEDS = ('stream', 'shuffled', 'sequences', 'none')
_ORDER = 3  # folded into a step's key; the step itself folds in 2 at most


class EpochData(Pytree):
  """Everything that the steps of an epoch read and none changes.

  Attributes:
    inputs: on the device.
    order: of `epoch_order`; None for the log's own order.
    batch_size: rows of a batch, padding included.
    dedup_limits: of the plan; without it every event is embedded on its own.
    own_limits: of the plan; without it a device has room for all events.
  """

  inputs: Inputs
  order: Array | None
  batch_size: int = static_field()
  dedup_limits: dedup.DedupLimits = static_field(default=dedup.DedupLimits())
  own_limits: OwnLimits = static_field(default=ROOM_FOR_ALL)


def training_plan(
  system: System,
  log: EventLog,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> BatchPlan:
  """The batches of the training split, as `system.feed` wants them.

  Args:
    system: to be trained.
    log: the prepared log.
    batch_size: rows of a batch: events, or sequences.
    mesh: the devices; None for one.

  Returns:
    The plan. It is chronological for a system that is not trained, too.

  Raises:
    InputError: if the batch size is not positive, or there is no such feed.
  """
  if system.feed not in FEEDS:
    raise checks.not_allowed('System.feed', system.feed, ', '.join(FEEDS))
  if system.feed in ('stream', 'none'):
    plan = batching.plan_batches(log.times, 0, log.train_end, batch_size)
    plan = batching.with_dedup_limits(plan, log)
    return batching.with_own_limits(plan, log, mesh)
  table = (
    sequence_table(log, system.sequence_length)
    if system.feed == 'sequences'
    else np.arange(log.train_end, dtype=np.int32)
  )

  # Rows have no order in time, so the plan is that of as many events, each at a
  # time of its own.
  plan = batching.plan_batches(np.arange(len(table)), 0, len(table), batch_size)
  return plan._replace(events=table)


def sequence_table(log: EventLog, length: int) -> np.ndarray:
  """Cuts every user's training events into sequences of targets.

  A sequence ends at the end of a group of equal times where one fits; a larger
  group is cut into sequences of its own. So the events strictly earlier than
  the first target of a sequence end at most `length` events before those
  strictly earlier than its last: `length` inputs serve all its targets.

  Args:
    log: the prepared log.
    length: targets of a sequence at most.

  Returns:
    i32[sequences, length] positions in the log, oldest first, -1 after the
    last; every training event stands in it once.
  """
  users = log.users[: log.train_end]
  order = np.argsort(users, kind='stable')
  users, times = users[order], log.times[: log.train_end][order]

  # Events are by user, then time, from here on. `bounds` are where groups of
  # one user and time begin, and the end of the last.
  new_user = np.diff(users, prepend=0) != 0
  new_time = new_user | (np.diff(times, prepend=-1) != 0)
  bounds = np.append(np.flatnonzero(new_time), len(users))

  # Every round cuts one sequence for each user who has events left: rounds are
  # as many as the busiest user's sequences, so that no loop runs over users.
  start = np.flatnonzero(new_user)
  end = np.append(start[1:], len(users))[: len(start)]  # of the user's events
  starts, stops = [], []
  while len(start):
    group = np.searchsorted(bounds, start, side='right')  # the next bound
    longest = np.minimum(start + length, end)
    whole = bounds[np.searchsorted(bounds, longest, side='right') - 1]

    # Whole groups where one fits. Otherwise a part of a single group; what is
    # left of a cut group (`start` is no bound then) stays apart as well.
    fits = (bounds[group - 1] == start) & (whole > start)
    stop = np.where(fits, whole, np.minimum(start + length, bounds[group]))
    starts.append(start)
    stops.append(stop)
    start, end = stop[stop < end], end[stop < end]

  first = np.concatenate(starts or [np.zeros(0, int)])[:, None]
  last = np.concatenate(stops or [np.zeros(0, int)])[:, None]
  place = first + np.arange(length)
  real = place < last
  return np.where(real, order[np.where(real, place, 0)], -1).astype(np.int32)


def epoch_order(plan: BatchPlan, key: Array, step: Array) -> Array | None:
  """The rows of the plan's table in the order of one epoch, on the device.

  Args:
    plan: of `training_plan`.
    key: the run's key.
    step: i32[], steps before this epoch; an epoch that is resumed is drawn
      again as it was.

  Returns:
    i32[rows + batch, ...], the last rows -1; None where the log's own order
    stands.
  """
  if plan.events is None:
    return None
  return _shuffle(plan.batch_size, key, step, plan.events)


@functools.partial(jax.jit, static_argnums=0)
def _shuffle(padding: int, key: Array, step: Array, table: Array) -> Array:
  """The rows of a table in a random order, then `padding` rows of -1."""
  key = jax.random.fold_in(jax.random.fold_in(key, step), _ORDER)
  rows = table[jax.random.permutation(key, len(table))]
  pad = [(0, padding)] + [(0, 0)] * (table.ndim - 1)
  return jnp.pad(rows, pad, constant_values=-1)


def epoch_data(
  plan: BatchPlan, inputs: Inputs, key: Array, step: Array
) -> EpochData:
  """What the steps of one epoch read.

  Args:
    plan: of `training_plan`.
    inputs: on the device.
    key: the run's key.
    step: i32[], steps before this epoch.

  Returns:
    The data, in the order of this epoch.
  """
  order = epoch_order(plan, key, step)
  return EpochData(
    inputs, order, plan.batch_size, plan.dedup_limits, plan.own_limits
  )


def read_batch(
  data: EpochData, planned: PlannedBatch
) -> tuple[EventBatch, Array]:
  """Reads a training batch on the device.

  Args:
    data: of the epoch.
    planned: which rows of the epoch's order.

  Returns:
    The batch, [batch] or [batch, sequence], and the i32 positions of its
    events in the log. Padding of an order has ids 0 and time 0.
  """
  size, inputs = data.batch_size, data.inputs
  if data.order is None:
    batch = batching.slice_batch(inputs, planned, size)
    return batch, planned.start + jnp.arange(size)

  events = jax.lax.dynamic_slice_in_dim(data.order, planned.start, size)
  number = jnp.arange(size).reshape(-1, *[1] * (events.ndim - 1))
  mask = (events >= 0) & (number < planned.size)
  events = jnp.where(mask, events, 0)
  users, items, times = (
    jnp.where(mask, column, 0)
    for column in sharded_table.read_rows(
      (inputs.users, inputs.items, inputs.times), events
    )
  )
  return EventBatch(users, items, times, mask), events


def add_pending(
  system: System,
  pending: Pending,
  batch: EventBatch,
  loss: Loss,
  planned: PlannedBatch,
) -> Pending:
  """Adds a training batch to what waits for its update.

  Only a stream has updates; for any other feed nothing ever waits.
  """
  if system.feed != 'stream':
    return pending
  assert loss.user_vectors is not None and loss.item_vectors is not None
  return pending_updates.add_pending(
    pending, batch, loss.user_vectors, loss.item_vectors, planned
  )
