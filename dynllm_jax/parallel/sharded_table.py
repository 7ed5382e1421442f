"""Rows of tables that may lie over several devices.

A table whose rows are shared among devices lies in equal blocks over the axis
`nodes` of the mesh: row n with device n // (rows of a block). Every read and
write of such a table goes through `query_rows`, `read_rows`, `read_slice` or
`write_rows`: each device
answers for the rows it owns, the answers are summed, and no device ever sees
the whole table. `device_mesh.ROW_SHARDED` lists these tables.

The mesh is the one of the surrounding `use_mesh`. Without one, or where
`nodes` is 1, every function here is the plain indexing that it stands for.
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
  """Makes a mesh the one that functions of this module lay arrays over.

  A mesh of one device changes nothing, so that programs are those without.
  """
  return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def _mesh():
  return jax.sharding.get_abstract_mesh()


def num_shards() -> int:
  """Devices that share the rows of a table."""
  mesh = _mesh()
  return 1 if mesh.empty else mesh.shape[NODES]


def _lay(tree, spec_of):
  if _mesh().empty:
    return tree
  return jax.tree.map(
    lambda x: jax.lax.with_sharding_constraint(x, spec_of(x)), tree
  )


def shard_first_axis(tree: Any) -> Any:
  """Inside jit: lays the first axis of every array over all devices.

  Over `data` alone where the axis does not divide over all of them; not at all
  where it does not divide over `data` either.
  """

  def spec_of(x):
    if not x.ndim:
      return PartitionSpec()
    for axes in ((DATA, NODES), (DATA,)):
      if len(x) % math.prod(_mesh().shape[axis] for axis in axes) == 0:
        return PartitionSpec(axes)
    return PartitionSpec()

  return _lay(tree, spec_of)


def replicate(tree: Any) -> Any:
  """Inside jit: every device has all of every array."""
  return _lay(tree, lambda x: PartitionSpec())


def shard_then_replicate(tree: Any) -> Any:
  """Inside jit: made a part on each device, then brought to all of them.

  Without the first half the compiler may bring together what an array is made
  of instead, and make it everywhere.
  """
  return replicate(shard_first_axis(tree))


def shard_last_axis(x: Array) -> Array:
  """Inside jit: lays the last axis of an array over all devices."""
  return _lay(x, lambda x: PartitionSpec(*[None] * (x.ndim - 1), (DATA, NODES)))


def num_replicas() -> int:
  """Groups of devices that each hold all tables, a length of `data`."""
  mesh = _mesh()
  return 1 if mesh.empty else mesh.shape[DATA]


def round_up_to_devices(size: int) -> int:
  """A number of rows, rounded up to what divides over all devices."""
  mesh = _mesh()
  return size if mesh.empty else size + -size % mesh.size


def round_up_to_shards(size: int) -> int:
  """A number of rows, rounded up to equal blocks over `nodes`."""
  return size + -size % num_shards()


def query_rows(
  answer: Callable[..., Any],
  size: Callable[[Any], int],
  table: Any,
  nodes: Array,
  *queries: Array,
) -> Any:
  """What a table says of some of its rows.

  Args:
    answer: `(table, nodes, *queries) ->` a pytree of arrays
      [*nodes.shape, ...], of a block of the table and places in it.
    size: `(block) ->` its rows.
    table: a pytree of arrays in equal blocks; no gradient passes.
    nodes: i32[...], rows of the whole table.
    *queries: i32[*nodes.shape, ...].

  Returns:
    The answers. Over several devices three steps, each over `nodes` alone:
    the questions are gathered, every device answers those on its own rows, and
    the sum of all answers, zero where a row is not owned, goes back to where
    the question came from. Bits are summed as integers: nothing is rounded.
  """
  if num_shards() == 1:
    return answer(table, nodes, *queries)
  shape, count = nodes.shape, math.prod(nodes.shape)
  flat = [x.reshape(count, *x.shape[len(shape) :]) for x in (nodes, *queries)]
  padding = -count % _mesh().size
  flat = [jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in flat]
  asked, unpack_asked = _pack(flat)
  unpack = []

  def local(table, asked):
    nodes, *queries = unpack_asked(
      jax.lax.all_gather(asked, NODES, axis=0, tiled=True)
    )
    block = size(table)
    place = nodes - jax.lax.axis_index(NODES) * block
    own = (place >= 0) & (place < block)
    packed, back = _pack(answer(table, jnp.where(own, place, 0), *queries))
    unpack.append(back)
    return jax.lax.psum_scatter(
      jnp.where(own[:, None], packed, 0), NODES, scatter_dimension=0, tiled=True
    )

  every = PartitionSpec((DATA, NODES))
  packed = jax.shard_map(
    local,
    in_specs=(PartitionSpec(NODES), every),
    out_specs=every,
    check_vma=False,
  )(*jax.lax.stop_gradient((table, asked)))
  return jax.tree.map(
    lambda x: x[:count].reshape(*shape, *x.shape[1:]), unpack[0](packed)
  )


def read_rows(table: Any, nodes: Array) -> Any:
  """`table[nodes]` of every array of a pytree."""
  return query_rows(
    lambda block, place: jax.tree.map(lambda x: x[place], block),
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
    nodes: i32[n], none twice; NO_ROW is dropped.
    values: [n, ...] for each array.

  Returns:
    The table. Every device has all values and keeps those of its own rows.
  """

  def write(table, nodes, values):
    return jax.tree.map(
      lambda x, v: x.at[nodes].set(v, mode='drop'), table, values
    )

  if num_shards() == 1:
    return write(table, nodes, values)

  def local(table, nodes, values):
    block = len(jax.tree.leaves(table)[0])
    place = nodes - jax.lax.axis_index(NODES) * block
    own = (place >= 0) & (place < block)
    return write(table, jnp.where(own, place, NO_ROW), values)

  rows, everyone = PartitionSpec(NODES), PartitionSpec()
  return jax.shard_map(
    local, in_specs=(rows, everyone, everyone), out_specs=rows, check_vma=False
  )(table, nodes, values)


def _pack(tree):
  """A pytree of arrays [n, ...] as i32[n, words], and the way back.

  The words hold the very bits: a sum with zeros gives them back unrounded,
  and one collective serves all arrays. Halves travel two a word.
  """
  leaves, structure = jax.tree.flatten(tree)
  columns = [_words(leaf) for leaf in leaves]
  ends = [0]
  for column in columns:
    ends.append(ends[-1] + column.shape[1])

  def unpack(words):
    return jax.tree.unflatten(
      structure,
      [
        _values(words[:, start:end], leaf.shape[1:], leaf.dtype)
        for leaf, start, end in zip(leaves, ends, ends[1:])
      ],
    )

  return jnp.concatenate(columns, axis=1), unpack


def _words(x):
  x = x.reshape(len(x), -1)
  if x.dtype == bool:
    return x.astype(jnp.int32)
  if x.dtype.itemsize == 2:
    x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2)])
    x = x.reshape(len(x), -1, 2)
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def _values(words, shape, dtype):
  if dtype == bool:
    values = words != 0
  else:
    values = jax.lax.bitcast_convert_type(words, dtype)
    values = values.reshape(len(words), -1)[:, : math.prod(shape)]
  return values.reshape(len(words), *shape)
