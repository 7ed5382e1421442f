"""The device mesh, and which arrays are sharded over which of its axes.

All rules are here: batches are sharded over all devices, and so are the fields
of `EVENT_SHARDED`; the tables of `ROW_SHARDED` over the axis `nodes` in equal
blocks of rows; and every device has all of everything else. sharded_table.py
reads and writes such tables; models need to know of neither.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jax.sharding import Sharding
from jax.sharding import SingleDeviceSharding
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import FacetBank
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import KeyRows
from dynllm_jax.types import NodeMemory
from dynllm_jax.types import Pending
from dynllm_jax.types import QueryRows
from dynllm_jax.types import SameTimeItems
from dynllm_jax.types import TemporalGraph

# The fields whose rows are shared among the devices of `nodes`.
ROW_SHARDED: dict[type, tuple[str, ...]] = {
  NodeMemory: ('state', 'time', 'slot'),
  TemporalGraph: ('offsets', 'neighbors', 'times'),
  SameTimeItems: ('offsets', 'items', 'group'),
  FacetBank: ('texts', 'offsets', 'closes', 'index'),
  QueryRows: ('own', 'by_code', 'merged'),
  KeyRows: ('key', 'value'),
  Inputs: ('users', 'items', 'times', 'item_text', 'mapped_texts', 'sold'),
}

# The fields whose rows are shared among all devices, where they divide evenly.
EVENT_SHARDED: dict[type, tuple[str, ...]] = {
  Pending: ('user_vectors', 'item_vectors')
}


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
  """The mesh of `config.mesh`, over the first devices that there are.

  Args:
    config: the whole configuration. `mesh.data` devices share a batch (0: all
      that `nodes` leaves), `mesh.nodes` devices share the node tables.

  Returns:
    A mesh with axes `data` and `nodes`.

  Raises:
    InputError: if the mesh needs more devices than there are, or does not
      divide a batch, or a batch is empty.
  """
  checks.check(
    'config.mesh',
    config.mesh,
    [checks.at_least('nodes', 1), checks.at_least('data', 0, ' (0: all)')],
  )
  devices = jax.devices()
  nodes = config.mesh.nodes
  data = config.mesh.data or max(1, len(devices) // nodes)
  if data * nodes > len(devices):
    raise InputError(
      f'config.mesh: {data} x {nodes} devices asked for; '
      f'{len(devices)} {devices[0].platform} device(s) are here'
    )

  chosen = devices[: data * nodes]
  left_out = {d.process_index for d in devices} - {
    d.process_index for d in chosen
  }
  if left_out:
    raise InputError(
      f'config.mesh: {data} x {nodes} devices leave none to process '
      f'{min(left_out)}; allowed: a mesh with devices of every process'
    )

  for section in ('train', 'eval'):
    checks.check(
      f'config.{section}', config[section], [checks.at_least('batch_size', 1)]
    )
    size = config[section].batch_size
    if size % data:
      raise InputError(
        f'config.{section}.batch_size: {size} events do not divide over '
        f'config.mesh.data = {data} devices; allowed: a multiple of {data}'
      )

  return Mesh(
    np.array(chosen).reshape(data, nodes),
    (sharded_table.DATA, sharded_table.NODES),
  )


@dataclasses.dataclass(frozen=True)
class Blocks:
  """A host array in equal blocks, each made when it is first needed.

  Attributes:
    shape: of the whole array.
    dtype: of its elements.
    block: `(number) -> array`, makes a block.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  block: Callable[[int], np.ndarray]


def partition_specs(tree: Any, num_devices: int) -> Any:
  """The `PartitionSpec` of every array of a pytree, by the rules above."""

  def specs_of(node: Any) -> Any:
    if type(node) not in ruled:
      return PartitionSpec()
    values = {
      f.name: getattr(node, f.name)
      for f in dataclasses.fields(node)
      if not f.metadata.get('static')
    }
    return node.replace(
      **{
        name: spec_of(type(node), name, value) for name, value in values.items()
      }
    )

  def spec_of(kind: type, name: str, value: Any) -> Any:
    if value is not None and name in ROW_SHARDED.get(kind, ()):
      return PartitionSpec(sharded_table.NODES)
    if name in EVENT_SHARDED.get(kind, ()):
      even = value.shape[0] % num_devices == 0
      return sharded_table.EVERY_DEVICE if even else PartitionSpec()
    return partition_specs(value, num_devices)

  ruled = {*ROW_SHARDED, *EVENT_SHARDED}
  return jax.tree.map(specs_of, tree, is_leaf=lambda x: type(x) in ruled)


def constrain(tree: Any) -> Any:
  """Shards a pytree by the rules above; inside jit, under `use_mesh`."""
  devices = sharded_table.num_shards() * sharded_table.num_replicas()
  if devices == 1:
    return tree
  return jax.tree.map(
    lambda spec, x: jax.lax.with_sharding_constraint(x, spec),
    partition_specs(tree, devices),
    tree,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def shardings(mesh: Mesh, tree: Any) -> Any:
  """The sharding of every array of a pytree.

  On one device all are the same: among shardings that only differ in name XLA
  chooses for itself, and a loop's second turn would be compiled again.
  """
  if mesh.size == 1:
    here = SingleDeviceSharding(mesh.devices.item())
    return jax.tree.map(lambda _: here, tree)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    partition_specs(tree, mesh.size),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def put_on_mesh(mesh: Mesh, tree: Any) -> Any:
  """Puts host arrays on the devices; each process fills its own devices.

  Args:
    mesh: the mesh.
    tree: a pytree of host arrays and `Blocks`, the same in every process.

  Returns:
    The pytree of global arrays.
  """
  return jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(value: Any, sharding: Sharding) -> jax.Array:
  if isinstance(value, Blocks):
    size = len(value.block(0))
    # Devices along `data` hold the same block, which is made once.
    block = functools.cache(value.block)

    def shard(index: Any) -> np.ndarray:
      return block((index[0].start or 0) // size)

    return jax.make_array_from_callback(value.shape, sharding, shard)
  if sharding.is_fully_addressable:
    return jax.device_put(value, sharding)
  value = np.asarray(value)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def shapes_on_mesh(mesh: Mesh, function: Callable[..., Any], *args: Any) -> Any:
  """What `compute_on_mesh` would return, without its values.

  Returns:
    A pytree of `jax.ShapeDtypeStruct`, with shardings.
  """
  with sharded_table.use_mesh(mesh):
    result = jax.eval_shape(function, *args)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    result,
    shardings(mesh, result),
  )


def compute_on_mesh(
  mesh: Mesh, function: Callable[..., Any], *args: Any
) -> Any:
  """Calls a function once and shards its result by the rules above.

  Args:
    mesh: the mesh.
    function: may be jitted.
    *args: its arguments, pytrees of arrays on the devices.

  Returns:
    Its result. No device ever holds more than its own shards of it.
  """
  result = shapes_on_mesh(mesh, function, *args)
  with sharded_table.use_mesh(mesh):
    # What runs once need not be fast, and compiles in a third of the time.
    return jax.jit(
      function,
      out_shardings=jax.tree.map(lambda x: x.sharding, result),
      compiler_options={'xla_backend_optimization_level': 0},
    )(*args)


def cut_into_blocks(mesh: Mesh, inputs: Inputs) -> Inputs:
  """Cuts the tables of `ROW_SHARDED` into equal blocks, one for each shard.

  A block of an index holds the rows of its own nodes, and offsets that count
  from its own start: they fit 32 bits however many events the log has.

  Args:
    mesh: the mesh.
    inputs: of numpy arrays.

  Returns:
    The inputs, with `Blocks` for those arrays; unchanged where `nodes` is 1.
  """
  count = mesh.shape[sharded_table.NODES]
  if count == 1:
    return inputs
  same_time, facets = inputs.same_time, inputs.facets
  return inputs.replace(
    user_graph=_cut_index(inputs.user_graph, ('neighbors', 'times'), count),
    item_graph=_cut_index(inputs.item_graph, ('neighbors', 'times'), count),
    same_time=_cut_index(same_time, ('items',), count).replace(
      group=_cut_table(same_time.group, count)
    ),
    facets=_cut_index(facets, ('closes', 'index'), count).replace(
      texts=_cut_table(facets.texts, count)
    ),
    **{
      name: _cut_table(getattr(inputs, name), count)
      for name in ROW_SHARDED[Inputs]
      if getattr(inputs, name) is not None
    },
  )


def _cut_table(table: Array, count: int) -> Blocks:
  """A table in `count` equal blocks, the last ones padded with zeros."""
  size = -(-len(table) // count)

  def block(number: int) -> np.ndarray:
    return _pad(table[number * size : (number + 1) * size], size)

  return Blocks((size * count, *table.shape[1:]), table.dtype, block)


def _cut_index(index: Any, columns: tuple[str, ...], count: int) -> Any:
  """An index in blocks of as many nodes each.

  Args:
    index: a pytree with `offsets`, i32[nodes + 1], into its columns.
    columns: names of the columns, [events, ...].
    count: number of blocks.

  Returns:
    The index, with `Blocks` of offsets and columns. Blocks of a column are as
    long as the longest needs, padded with zeros.
  """
  nodes = len(index.offsets) - 1
  size = -(-nodes // count)
  bounds = index.offsets[np.minimum(size * np.arange(count + 1), nodes)]
  longest = int(np.diff(bounds).max())

  def offsets(number: int) -> np.ndarray:
    at = np.minimum(size * number + np.arange(size + 1), nodes)
    return (index.offsets[at] - bounds[number]).astype(np.int32)

  def column(values: Array) -> Blocks:
    def block(number: int) -> np.ndarray:
      return _pad(values[bounds[number] : bounds[number + 1]], longest)

    return Blocks((longest * count, *values.shape[1:]), values.dtype, block)

  return index.replace(
    offsets=Blocks(((size + 1) * count,), np.dtype(np.int32), offsets),
    **{name: column(getattr(index, name)) for name in columns},
  )


def _pad(rows: Array, size: int) -> np.ndarray:
  """Rows, padded with zeros to a length of `size`."""
  rows = np.asarray(rows)
  return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def bytes_per_device(tree: Any) -> dict[str, int]:
  """Bytes that each array of a pytree takes on one device, by its path."""
  sizes = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    shape = leaf.sharding.shard_shape(leaf.shape)
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    sizes[name] = math.prod(shape) * leaf.dtype.itemsize
  return sizes
