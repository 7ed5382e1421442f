"""Reads and writes of tables whose rows are sharded over several devices.

Such a table is cut into equal blocks over the axis `nodes` of the mesh: row n
is on device n // (rows of a block). All reads and writes go through
`query_rows`, `read_rows`, `read_slice` and `write_rows`: each device answers
for the rows it owns, the answers are summed, and no device ever sees the whole
table. `device_mesh.ROW_SHARDED` lists these tables.

The mesh is the one of the surrounding `use_mesh`. Without one, or where
`nodes` is 1, every function here is plain indexing.
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
NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a write drops


def use_mesh(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager:
  """A context in which functions of this module shard arrays over a mesh.

  A mesh of one device changes nothing: programs are those without a mesh.
  """
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def _mesh() -> jax.sharding.AbstractMesh:
  return jax.sharding.get_abstract_mesh()


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

  Over several devices this takes three steps, all over the axis `nodes`: the
  queries are gathered, every device answers those about its own rows, and the
  sum of all answers, zero from devices that do not own the row, goes back to
  where the query came from. The bits of answers are summed as integers, so
  that nothing is rounded.

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
  unpack = []

  def answer_own(block: Any, asked: Array) -> Array:
    nodes, *queries = unpack_asked(
      jax.lax.all_gather(asked, NODES, axis=0, tiled=True)
    )
    own, rows = _own_rows(nodes, size(block))
    packed, back = _pack(answer(block, jnp.where(own, rows, 0), *queries))
    unpack.append(back)
    return jax.lax.psum_scatter(
      jnp.where(own[:, None], packed, 0), NODES, scatter_dimension=0, tiled=True
    )

  every = PartitionSpec((DATA, NODES))
  packed = jax.shard_map(
    answer_own,
    in_specs=(PartitionSpec(NODES), every),
    out_specs=every,
    check_vma=False,
  )(*jax.lax.stop_gradient((table, asked)))
  return jax.tree.map(
    lambda x: x[:count].reshape(*shape, *x.shape[1:]), unpack[0](packed)
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
  """`table[start:start + length]` of every array [rows] of a pytree."""
  if num_shards() > 1:
    return read_rows(table, start + jnp.arange(length, dtype=jnp.int32))
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice(x, [start], [length]), table
  )


def write_rows(table: Any, nodes: Array, values: Any) -> Any:
  """`table.at[nodes].set(values)` of every array of a pytree.

  Args:
    table: a pytree of arrays in equal blocks.
    nodes: i32[n], no row twice; NO_ROW is dropped.
    values: [n, ...] for each array.

  Returns:
    The table. Every device has all values and writes those of its own rows.
  """

  def write(block: Any, rows: Array, values: Any) -> Any:
    return jax.tree.map(
      lambda x, v: x.at[rows].set(v, mode='drop'), block, values
    )

  if num_shards() == 1:
    return write(table, nodes, values)

  def write_own(block: Any, nodes: Array, values: Any) -> Any:
    own, rows = _own_rows(nodes, len(jax.tree.leaves(block)[0]))
    return write(block, jnp.where(own, rows, NO_ROW), values)

  sharded, replicated = PartitionSpec(NODES), PartitionSpec()
  return jax.shard_map(
    write_own,
    in_specs=(sharded, replicated, replicated),
    out_specs=sharded,
    check_vma=False,
  )(table, nodes, values)


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
