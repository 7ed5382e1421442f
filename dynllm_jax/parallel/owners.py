"""Who applies which event: the device that owns a node makes its updates.

Device (d, k) of a mesh `data` x `nodes` owns node n where its block of the
tables, the k-th, has row n, and d = n modulo the length of `data`. An event
changes its user and its item, so it goes to the owner of either. What it
brings along is sent to that device alone, in one all-to-all.

Programs have fixed shapes: a device has room for `OwnLimits.events` events,
and for `OwnLimits.sent` from each device. The host knows every batch before it
comes (`limits_of`), so that there is always room; should there be none, what
the update gives is NaN, and the run stops.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.parallel import sharded_table
from dynllm_jax.parallel.sharded_table import DATA
from dynllm_jax.parallel.sharded_table import EVERY_DEVICE
from dynllm_jax.parallel.sharded_table import NODES
from dynllm_jax.types import Array
from dynllm_jax.types import EventLog
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import ROOM_FOR_ALL

STEP = 8  # limits are multiples of it, so that few programs compile


def owner_of(nodes: Any, num_nodes: int, shape: tuple[int, int]) -> Any:
  """The number of the device that owns each node.

  Args:
    nodes: i32[...], of numpy or JAX.
    num_nodes: of the side, padding not counted.
    shape: of the mesh, `data` x `nodes`.

  Returns:
    i32[...].
  """
  block_rows = -(-(num_nodes + 1) // shape[1])
  return nodes % shape[0] * shape[1] + nodes // block_rows


def limits_of(
  log: EventLog, batches: PlannedBatch, batch_size: int, mesh: Mesh
) -> OwnLimits:
  """How much of any update of a plan falls to one device.

  Args:
    log: the prepared log.
    batches: ranges of the log, columns [batches]. Parts of one group of equal
      times are one update.
    batch_size: rows of a batch, padding included.
    mesh: the devices.

  Returns:
    The limits, rounded up; none on one device.
  """
  shape = mesh.shape[DATA], mesh.shape[NODES]
  devices = shape[0] * shape[1]
  if devices == 1 or not len(batches):
    return ROOM_FOR_ALL

  # The events in the order of the plan: which update, and where in it.
  batch = np.repeat(np.arange(len(batches)), batches.size)
  within = np.arange(len(batch)) - np.repeat(
    np.cumsum(batches.size) - batches.size, batches.size
  )
  events = batches.start[batch] + within
  update = np.cumsum(batches.part == 0)[batch]
  capacity = batch_size * (int(batches.part.max()) + 1)
  source = (batches.part[batch] * batch_size + within) // -(
    -capacity // devices
  )

  most, sent = 0, 0
  for nodes, count in ((log.users, log.num_users), (log.items, log.num_items)):
    to = owner_of(nodes[events], count, shape)
    key = update.astype(np.int64) * devices + to
    most = max(most, np.unique(key, return_counts=True)[1].max(initial=0))
    key = key * devices + source
    sent = max(sent, np.unique(key, return_counts=True)[1].max(initial=0))
  return OwnLimits(*(-(-int(n) // STEP) * STEP for n in (most, sent)))


class Events(NamedTuple):
  """The events of a batch as they concern the nodes of one side.

  Attributes:
    shared: a pytree that all devices have, as weights.
    columns: `nodes` i32[events], `mask` bool[events], and further columns
      [events] without a gradient. All devices get all of them: they are short.
    values: a pytree of f32[events, any].
    num_rows: of the table of the side.
  """

  shared: Any
  columns: tuple[Array, ...]
  values: Any
  num_rows: int


class Written(NamedTuple):
  """Rows to write into the table of a side; node 0 for none."""

  nodes: Array  # i32[rows]
  states: Array  # f32[rows, width]
  times: Array  # i32[rows], seconds


def apply_own(
  update: Callable[[tuple[Events, ...]], tuple[Written, ...]],
  sides: tuple[Events, ...],
  limits: OwnLimits,
) -> tuple[Written, ...]:
  """Applies the events of a batch, each where its node is owned.

  Args:
    update: what some events make of the nodes of each side. It is called on
      one device and sees no mesh. What it gives for a node may not depend on
      events of others.
    sides: of the batch.
    limits: of the plan.

  Returns:
    What `update` gives, of all devices one after another.
  """
  shape = sharded_table.num_replicas(), sharded_table.num_shards()
  devices = shape[0] * shape[1]
  if devices == 1:
    return update(sides)

  size = len(sides[0].columns[0])
  part = -(-size // devices)  # events whose values a device has
  pad = lambda x: jnp.pad(
    x, [(0, part * devices - size)] + [(0, 0)] * (x.ndim - 1)
  )

  def apply(*parts: tuple[Any, Any, Any]) -> tuple[Written, ...]:
    own = [
      _own_events(Events(*part, side.num_rows), shape, size, limits)
      for side, part in zip(sides, parts)
    ]
    written = update(tuple(events for events, _ in own))
    return tuple(
      rows._replace(states=jnp.where(fits, rows.states, jnp.nan))
      for rows, (_, fits) in zip(written, own)
    )

  everywhere = PartitionSpec()
  return jax.shard_map(
    apply,
    in_specs=((everywhere, everywhere, EVERY_DEVICE),) * len(sides),
    out_specs=EVERY_DEVICE,
    check_vma=False,
  )(
    *(
      (side.shared, *jax.tree.map(pad, (side.columns, side.values)))
      for side in sides
    )
  )


def _own_events(
  events: Events, shape: tuple[int, int], size: int, limits: OwnLimits
) -> tuple[Events, Array]:
  """Inside shard_map: the events of this device's nodes, in the log's order.

  Args:
    events: all columns, padded to a multiple of the devices, and this device's
      part of the values.
    shape: of the mesh.
    size: events of the batch.
    limits: of the plan.

  Returns:
    The events, masked where there are fewer than there is room for; bool[],
    whether there is room for all of them.
  """
  nodes, mask, *_ = events.columns
  devices = shape[0] * shape[1]
  part = len(nodes) // devices
  room = min(limits.events or size, size)
  sent = min(limits.sent or part, part)
  here = jax.lax.axis_index(DATA) * shape[1] + jax.lax.axis_index(NODES)
  owner = jnp.where(mask, owner_of(nodes, events.num_rows - 1, shape), devices)

  # To each device the values of its events, the first of them first.
  to = jax.lax.dynamic_slice(owner, [here * part], [part])
  place = sharded_table.place_in_queue(to, devices)
  seat = jnp.where(place < sent, to * sent + place, sharded_table.NO_ROW)
  event = sharded_table.rows_by_seat(seat, devices * sent)

  # Which events are this device's own, and where their values arrive.
  own = jnp.nonzero(owner == here, size=room, fill_value=size)[0]
  source = own // part
  number = jnp.arange(room) - jnp.searchsorted(source, source)
  arrival = source * sent + number

  def exchange(x: Array) -> Array:
    x = sharded_table.take_rows(x, event)
    x = jax.lax.all_to_all(x, (DATA, NODES), 0, 0, tiled=True)
    return sharded_table.take_rows(x, arrival)

  fits = jnp.sum(owner == here) <= room
  fits &= jnp.all((number < sent) | (own == size))
  return events._replace(
    columns=tuple(sharded_table.take_rows(x, own) for x in events.columns),
    values=jax.tree.map(exchange, events.values),
  ), fits
