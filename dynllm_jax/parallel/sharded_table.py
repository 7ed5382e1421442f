"""Reads and writes of tables whose rows are sharded over several devices.

Such a table is cut into equal blocks over the axis `nodes` of the mesh: row n
is on device n // (rows of a block). All reads and writes go through
`query_rows`, `read_rows`, `read_slice` and `write_rows`: each device answers
for the rows it owns, the answers are summed, and no device ever sees the whole
table. `device_mesh.ROW_SHARDED` lists these tables.

The mesh is the one of the surrounding `use_mesh`. Without one, or where
`nodes` is 1, every function here is plain indexing. So it is inside
`jax.shard_map`, where a device is on its own.
"""

from collections.abc import Callable
import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dynllm_jax.types import Array

DATA, NODES = 'data', 'nodes'  # axes of the mesh
EVERY_DEVICE = PartitionSpec((DATA, NODES))  # a first axis, over all of them
NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a write drops
_NO_MESH = jax.sharding.AbstractMesh((), ())
# Questions that a device sends to another in a round, over the mean of what it
# has for each: with more, most of what is sent is padding; with fewer, uneven
# questions need more rounds.
ROOM = 2
# Bytes up to which one round has room for all questions to one device: so few
# cost the same, whatever they hold.
SMALL_EXCHANGE = 1 << 18


def use_mesh(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
  """A context in which functions of this module shard arrays over a mesh.

  A mesh of one device changes nothing: programs are those without a mesh.
  """
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def _mesh() -> jax.sharding.AbstractMesh:
  mesh = jax.sharding.get_abstract_mesh()
  return _NO_MESH if mesh.manual_axes else mesh


def is_one_device() -> bool:
  """Whether programs are those without a mesh."""
  return _mesh().empty


def num_shards() -> int:
  """Devices that share the rows of a table."""
  mesh = _mesh()
  return 1 if mesh.empty else mesh.shape[NODES]


def _constrain(tree: Any, spec_of: Callable[[Array], PartitionSpec]) -> Any:
  if _mesh().empty:
    return tree
  return jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(x, spec_of(x)), tree
  )


def shard_first_axis(tree: Any) -> Any:
  """Inside jit: shards the first axis of every array over all devices.

  Only over `data` where the axis does not divide evenly over all devices, and
  not at all where it does not divide over `data` either.
  """

  def spec_of(x: Array) -> PartitionSpec:
    if not x.ndim:
      return PartitionSpec()
    for axes in ((DATA, NODES), (DATA,)):
      if len(x) % math.prod(_mesh().shape[axis] for axis in axes) == 0:
        return PartitionSpec(axes)
    return PartitionSpec()

  return _constrain(tree, spec_of)


def replicate(tree: Any) -> Any:
  """Inside jit: every device gets all of every array."""
  return _constrain(tree, lambda x: PartitionSpec())


def shard_then_replicate(tree: Any) -> Any:
  """Inside jit: each device computes its shard, then all devices get all.

  With `replicate` alone the compiler may instead gather the array's operands
  and compute the whole array on every device.
  """
  return replicate(shard_first_axis(tree))


def shard_last_axis(x: Array) -> Array:
  """Inside jit: shards the last axis of an array over all devices."""
  return _constrain(
    x, lambda x: PartitionSpec(*[None] * (x.ndim - 1), (DATA, NODES))
  )


def num_replicas() -> int:
  """Groups of devices that each hold all tables: the length of `data`."""
  mesh = _mesh()
  return 1 if mesh.empty else mesh.shape[DATA]


def round_up_to_devices(size: int) -> int:
  """A number of rows, rounded up to a multiple of the number of devices."""
  mesh = _mesh()
  return size if mesh.empty else size + -size % mesh.size


def round_up_to_shards(size: int) -> int:
  """A number of rows, rounded up to a multiple of the length of `nodes`."""
  return size + -size % num_shards()


def query_rows(
  answer: Callable[..., Any],
  size: Callable[[Any], int],
  table: Any,
  nodes: Array,
  *queries: Array,
) -> Any:
  """Answers queries about rows of a table, each on the device with the row.

  Over several devices this takes three steps, all over the axis `nodes`: every
  device sends its questions to those who own the rows (an all-to-all), they
  answer, and the answers go back the same way. A device sends another only so
  many in one go; there are as many rounds as the fullest pair of devices
  needs, so that no question is ever left out. Bits of values are sent as
  integers, so that nothing is rounded.

  Args:
    answer: `(block, rows, *queries)` to a pytree of arrays [*rows.shape, ...],
      given a block of the table and i32 row numbers within it.
    size: `(block)` to its number of rows.
    table: a pytree of arrays in equal blocks; no gradient passes through.
    nodes: i32[...], rows of the whole table.
    *queries: i32[*nodes.shape, ...].

  Returns:
    The answers, a pytree of arrays [*nodes.shape, ...].
  """
  if num_shards() == 1:
    return answer(table, nodes, *queries)

  shape, count = nodes.shape, math.prod(nodes.shape)
  flat = [x.reshape(count, *x.shape[len(shape) :]) for x in (nodes, *queries)]
  padding = -count % _mesh().size
  flat = [jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in flat]
  asked, unpack_asked = _pack(flat)
  unpack, last = [], num_shards() - 1

  def answer_own(block: Any, asked: Array) -> Array:
    block_rows = size(block)
    first = jax.lax.axis_index(NODES) * block_rows

    def answer_asked(asked: Array) -> Array:
      nodes, *queries = unpack_asked(asked)
      rows = jnp.clip(nodes - first, 0, block_rows - 1)  # of padding too
      packed, back = _pack(answer(block, rows, *queries))
      unpack.append(back)
      return packed

    owner = jnp.clip(asked[:, 0] // block_rows, 0, last)
    return _ask(answer_asked, owner, asked)

  packed = jax.shard_map(
    answer_own,
    in_specs=(PartitionSpec(NODES), EVERY_DEVICE),
    out_specs=EVERY_DEVICE,
    check_vma=False,
  )(*jax.lax.stop_gradient((table, asked)))
  return jax.tree.map(
    lambda x: x[:count].reshape(*shape, *x.shape[1:]), unpack[0](packed)
  )


def _ask(answer: Callable[[Array], Array], owner: Array, asked: Array) -> Array:
  """Inside shard_map: asks the devices of `nodes`, in rounds.

  Args:
    answer: `(asked i32[rows, words]) -> i32[rows, any]`, what this device
      answers to others.
    owner: i32[count], the device that each question is for.
    asked: i32[count, words], this device's questions.

  Returns:
    i32[count, any], the answers.
  """
  count, devices = len(owner), jax.lax.axis_size(NODES)
  like = jax.eval_shape(answer, asked)
  room = min(count, -(-ROOM * count // devices))
  words = asked.shape[1] + like.shape[1]
  if devices * count * words * asked.dtype.itemsize <= SMALL_EXCHANGE:
    room = count

  place = place_in_queue(owner, devices)
  seat = owner * room + place % room

  def exchange(x: Array) -> Array:
    return jax.lax.all_to_all(x, NODES, 0, 0, tiled=True)

  def ask(number: Array | int, answers: Array) -> Array:
    now = place // room == number
    question = rows_by_seat(jnp.where(now, seat, NO_ROW), devices * room)
    sent = take_rows(asked, question)
    answered = exchange(answer(exchange(sent)))
    return jnp.where(now[:, None], answered[seat], answers)

  answers = jnp.zeros(like.shape, like.dtype)
  if room == count:
    return ask(0, answers)
  # All devices agree on the number of rounds, since all take part in each.
  rounds = jax.lax.pmax(1 + jnp.max(place) // room, (DATA, NODES))
  return jax.lax.fori_loop(0, rounds, ask, answers)


def place_in_queue(to: Array, num_devices: int) -> Array:
  """How many rows before each one go to the same device, i32[rows].

  Args:
    to: i32[rows], numbers of devices; a row for none has place 0.
    num_devices: devices that there are.
  """
  mine = to[:, None] == jnp.arange(num_devices)
  before = jnp.cumsum(mine, axis=0, dtype=jnp.int32) - 1
  return jnp.sum(jnp.where(mine, before, 0), axis=1)


def take_rows(x: Array, rows: Array, fill: int = 0) -> jax.Array:
  """`x[rows]`, and `fill` where there is no such row."""
  return jnp.asarray(x).at[rows].get(mode='fill', fill_value=fill)


def rows_by_seat(seat: Array, num_seats: int) -> Array:
  """The row that has each seat, i32[seats]; the number of rows where none has.

  Args:
    seat: i32[rows], no seat twice; a row whose seat is not there has none.
    num_seats: seats that there are.
  """
  count = len(seat)
  return (
    jnp.full([num_seats], count, jnp.int32)
    .at[seat]
    .set(jnp.arange(count, dtype=jnp.int32), mode='drop')
  )


def read_rows(table: Any, nodes: Array) -> Any:
  """`table[nodes]` of every array of a pytree.

  Args:
    table: a pytree of arrays in equal blocks; no gradient passes through.
    nodes: i32[...], rows of the whole table.

  Returns:
    A pytree of arrays [*nodes.shape, ...].
  """
  return query_rows(
    lambda block, rows: jax.tree.map(lambda x: x[rows], block),
    lambda block: len(jax.tree.leaves(block)[0]),
    table,
    nodes,
  )


def read_slice(table: Any, start: Array | int, length: int) -> Any:
  """`table[start:start + length]` of every array [rows] of a pytree.

  Such rows lie on one device, or few. So nobody asks: those devices give the
  rows, the others zeros, and the sum is what all have.
  """
  if num_shards() == 1:
    return jax.tree.map(
      lambda x: jax.lax.dynamic_slice(x, [start], [length]), table
    )
  unpack = []

  def give_own(block: Any, start: Array) -> Array:
    block_rows = len(jax.tree.leaves(block)[0])
    nodes = start + jnp.arange(length, dtype=jnp.int32)
    own, rows = _own_rows(nodes, block_rows)
    rows = jnp.where(own, rows, 0)
    packed, back = _pack(jax.tree.map(lambda x: x[rows], block))
    unpack.append(back)
    return jax.lax.psum(jnp.where(own[:, None], packed, 0), NODES)

  packed = jax.shard_map(
    give_own,
    in_specs=(PartitionSpec(NODES), PartitionSpec()),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(table, jnp.asarray(start))
  return unpack[0](packed)


def write_rows(table: Any, nodes: Array, values: Any) -> Any:
  """`table.at[nodes].set(values)` of every array of a pytree.

  Args:
    table: a pytree of arrays in equal blocks.
    nodes: i32[n], no row twice; NO_ROW is dropped. Each device has as many of
      them, of nodes that it owns (owners.py).
    values: [n, ...] for each array.

  Returns:
    The table. Devices that hold the same block give each other their rows.
  """

  def write(block: Any, rows: Array, values: Any) -> Any:
    return jax.tree.map(
      lambda x, v: x.at[rows].set(v, mode='drop'), block, values
    )

  if num_shards() * num_replicas() == 1:
    return write(table, nodes, values)

  def write_own(block: Any, nodes: Array, values: Any) -> Any:
    packed, unpack = _pack((nodes, values))
    nodes, values = unpack(jax.lax.all_gather(packed, DATA, tiled=True))
    own, rows = _own_rows(nodes, len(jax.tree.leaves(block)[0]))
    return write(block, jnp.where(own, rows, NO_ROW), values)

  sharded = PartitionSpec(NODES)
  return jax.shard_map(
    write_own,
    in_specs=(sharded, EVERY_DEVICE, EVERY_DEVICE),
    out_specs=sharded,
    check_vma=False,
  )(table, nodes, values)


def add_rows(num_rows: int, at: Array, values: Array) -> Array:
  """Sums rows by place: `zeros.at[at].add(values)`.

  Args:
    num_rows: of the result.
    at: i32[n]; NO_ROW is dropped.
    values: f32[n, width].

  Returns:
    f32[num_rows, width]; each device has its share of the rows.
  """
  devices = num_shards() * num_replicas()
  share = -(-num_rows // devices)

  def add(at: Array, values: Array) -> Array:
    zeros = jnp.zeros([share * devices, values.shape[1]], values.dtype)
    return zeros.at[at].add(values, mode='drop')

  if devices == 1:
    return add(at, values)
  padding = -len(at) % devices
  at = jnp.pad(at, (0, padding), constant_values=NO_ROW)
  values = jnp.pad(values, ((0, padding), (0, 0)))

  # Few devices sum the whole; many send each other their rows, if those are
  # fewer.
  room = -(-ROOM * len(at) // devices**2)

  def add_own(at: Array, values: Array) -> Array:
    if room >= share:
      return jax.lax.psum_scatter(
        add(at, values), (DATA, NODES), scatter_dimension=0, tiled=True
      )
    return _send_and_add(share, room, at, values)

  return jax.shard_map(
    add_own,
    in_specs=(EVERY_DEVICE, EVERY_DEVICE),
    out_specs=EVERY_DEVICE,
    check_vma=False,
  )(at, values)[:num_rows]


def _send_and_add(share: int, room: int, at: Array, values: Array) -> Array:
  """Inside shard_map: `add_rows` by rounds of an all-to-all.

  Args:
    share: rows of the result that a device has.
    room: rows that a device sends to another in a round.
    at: i32[n], of this device's values.
    values: f32[n, width].

  Returns:
    f32[share, width], this device's share.
  """
  devices = jax.lax.axis_size(DATA) * jax.lax.axis_size(NODES)
  here = jax.lax.axis_index(DATA) * jax.lax.axis_size(NODES)
  here += jax.lax.axis_index(NODES)
  to = jnp.minimum(at // share, devices)  # `devices`: to none
  place = place_in_queue(to, devices)

  def exchange(x: Array) -> Array:
    return jax.lax.all_to_all(x, (DATA, NODES), 0, 0, tiled=True)

  def send(number: Array, total: jax.Array) -> jax.Array:
    now = (to < devices) & (place // room == number)
    seat = jnp.where(now, to * room + place % room, NO_ROW)
    row = rows_by_seat(seat, devices * room)
    nowhere = (here + 1) * share
    place_here = exchange(take_rows(at, row, NO_ROW))
    rows = exchange(take_rows(values, row))
    return total.at[jnp.minimum(place_here, nowhere) - here * share].add(
      rows, mode='drop'
    )

  rounds = jnp.max(jnp.where(to < devices, 1 + place // room, 0))
  return jax.lax.fori_loop(
    0,
    jax.lax.pmax(rounds, (DATA, NODES)),
    send,
    jnp.zeros([share, values.shape[1]], values.dtype),
  )


def _own_rows(nodes: Array, block_rows: int) -> tuple[Array, Array]:
  """Inside shard_map: which rows this device owns, and where in its block."""
  rows = nodes - jax.lax.axis_index(NODES) * block_rows
  return (rows >= 0) & (rows < block_rows), rows


def _pack(tree: Any) -> tuple[Array, Callable[[Array], Any]]:
  """Packs a pytree of arrays [n, ...] into i32[n, words].

  One collective then serves all arrays. Words hold the bits of the values, so
  that adding zeros changes nothing; two halves share a word.

  Returns:
    The words, and the function that unpacks them.
  """
  leaves, structure = jax.tree.flatten(tree)
  columns = [_words(leaf) for leaf in leaves]
  ends = [0]
  for column in columns:
    ends.append(ends[-1] + column.shape[1])

  def unpack(words: Array) -> Any:
    return jax.tree.unflatten(
      structure,
      [
        _values(words[:, start:end], leaf.shape[1:], leaf.dtype)
        for leaf, start, end in zip(leaves, ends, ends[1:])
      ],
    )

  return jnp.concatenate(columns, axis=1), unpack


def _words(x: Array) -> Array:
  """The bits of an array [n, ...] as i32[n, words]."""
  x = x.reshape(len(x), -1)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.int32)
  if x.dtype.itemsize == 2:
    x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2)])
    x = x.reshape(len(x), -1, 2)
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def _values(words: Array, shape: tuple[int, ...], dtype: Any) -> Array:
  """The array [n, *shape] that `_words` made words of."""
  if dtype == jnp.bool_:
    values = words != 0
  else:
    values = jax.lax.bitcast_convert_type(words, dtype)
    values = values.reshape(len(words), -1)[:, : math.prod(shape)]
  return values.reshape(len(words), *shape)
