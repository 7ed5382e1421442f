"""The device mesh, and which axis of what is laid over it.

All rules are here: batches are sharded over all devices, the tables of
`ROW_SHARDED` over the axis `nodes` in equal blocks of rows, and every device
has all of everything else. sharded_table.py reads and writes such tables;
models need to know of neither.
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
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import FacetBank
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import NodeMemory
from dynllm_jax.types import SameTimeItems
from dynllm_jax.types import TemporalGraph

# The fields whose rows are shared among the devices of `nodes`.
ROW_SHARDED = {
  NodeMemory: ('state', 'time', 'slot'),
  TemporalGraph: ('offsets', 'neighbors', 'times'),
  SameTimeItems: ('offsets', 'items', 'group'),
  FacetBank: ('texts', 'offsets', 'closes', 'index'),
  Inputs: ('users', 'items', 'times', 'item_text'),
}


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
  """The mesh of `config.mesh` over the first devices there are.

  Args:
    config: `mesh.data` devices share a batch (0: all that `nodes` leaves),
      `mesh.nodes` share the node tables.

  Returns:
    A mesh with axes `data` and `nodes`.

  Raises:
    InputError: if the mesh needs more devices than there are, or does not
      divide a batch, or a batch is empty.
  """
  devices = jax.devices()
  nodes = config.mesh.nodes
  checks.check(
    'config.mesh',
    config.mesh,
    [checks.at_least('nodes', 1), checks.at_least('data', 0, ' (0: all)')],
  )
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
  for part in ('train', 'eval'):
    checks.check(
      f'config.{part}', config[part], [checks.at_least('batch_size', 1)]
    )
    size = config[part].batch_size
    if size % data:
      raise InputError(
        f'config.{part}.batch_size: {size} events do not divide over '
        f'config.mesh.data = {data} devices; allowed: a multiple of {data}'
      )
  return Mesh(
    np.array(chosen).reshape(data, nodes),
    (sharded_table.DATA, sharded_table.NODES),
  )


@dataclasses.dataclass(frozen=True)
class Blocks:
  """A host array in equal blocks, each made when it is asked for."""

  shape: tuple[int, ...]  # of the whole
  dtype: Any
  block: Callable[[int], np.ndarray]


def partition_specs(tree: Any) -> Any:
  """The `PartitionSpec` of every array of a pytree, by the rules above."""

  def of(node):
    fields = ROW_SHARDED.get(type(node))
    if fields is None:
      return PartitionSpec()
    parts = {
      f.name: getattr(node, f.name)
      for f in dataclasses.fields(node)
      if not f.metadata.get('static')
    }
    return node.replace(
      **{
        name: PartitionSpec(sharded_table.NODES)
        if name in fields and part is not None
        else partition_specs(part)
        for name, part in parts.items()
      }
    )

  return jax.tree.map(of, tree, is_leaf=lambda x: type(x) in ROW_SHARDED)


def constrain(tree: Any) -> Any:
  """Lays a pytree out by the rules; inside jit, under `use_mesh`."""
  if sharded_table.num_shards() * sharded_table.num_replicas() == 1:
    return tree
  return jax.tree.map(
    lambda spec, x: jax.lax.with_sharding_constraint(x, spec),
    partition_specs(tree),
    tree,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def shardings(mesh: Mesh, tree: Any) -> Any:
  """The `NamedSharding` of every array of a pytree."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    partition_specs(tree),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def put_on_mesh(mesh: Mesh, tree: Any) -> Any:
  """Puts host arrays on the devices, each process on its own.

  Args:
    mesh: the mesh.
    tree: a pytree of host arrays and `Blocks`, alike in every process.

  Returns:
    The pytree of global arrays.
  """
  return jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(value, sharding):
  if isinstance(value, Blocks):
    size = len(value.block(0))
    block = functools.cache(value.block)
    return jax.make_array_from_callback(
      value.shape, sharding, lambda index: block((index[0].start or 0) // size)
    )
  if sharding.is_fully_addressable:
    return jax.device_put(value, sharding)
  value = np.asarray(value)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def compute_on_mesh(
  mesh: Mesh, function: Callable[..., Any], *args: Any
) -> Any:
  """What a function makes of arrays on the devices, laid out by the rules.

  Args:
    mesh: the mesh.
    function: may be jitted.
    *args: pytrees of its arguments.

  Returns:
    Its result; no device ever holds more of it than its part.
  """
  with sharded_table.use_mesh(mesh):
    result = jax.eval_shape(function, *args)
    return jax.jit(function, out_shardings=shardings(mesh, result))(*args)


def cut_into_blocks(mesh: Mesh, inputs: Inputs) -> Inputs:
  """Lays host inputs out for a mesh: tables of `ROW_SHARDED` in equal blocks.

  A block of an index holds the rows of its nodes and offsets of its own, so
  that they stay small however many events the log has.

  Args:
    mesh: the mesh.
    inputs: of numpy arrays.

  Returns:
    The inputs, with `Blocks` for those arrays; as they are where `nodes` is 1.
  """
  count = mesh.shape[sharded_table.NODES]
  if count == 1:
    return inputs
  users, items, same = (inputs.user_graph, inputs.item_graph, inputs.same_time)
  facets = inputs.facets
  return inputs.replace(
    user_graph=_index(users, ('neighbors', 'times'), count),
    item_graph=_index(items, ('neighbors', 'times'), count),
    same_time=_index(same, ('items',), count).replace(
      group=_even(same.group, count)
    ),
    facets=_index(facets, ('closes', 'index'), count).replace(
      texts=_even(facets.texts, count)
    ),
    **{
      name: _even(getattr(inputs, name), count) for name in ROW_SHARDED[Inputs]
    },
  )


def _even(table, count):
  """A table cut into equal blocks, the last ones padded with zeros."""
  size = -(-len(table) // count)

  def block(number):
    part = np.asarray(table[number * size : (number + 1) * size])
    return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

  return Blocks((size * count, *table.shape[1:]), table.dtype, block)


def _index(index, columns, count):
  """A pytree with `offsets` into its columns, cut into blocks of its nodes."""
  nodes = len(index.offsets) - 1
  size = -(-nodes // count)
  bounds = index.offsets[np.minimum(size * np.arange(count + 1), nodes)]
  longest = int(np.diff(bounds).max())

  def offsets(number):
    at = np.minimum(size * number + np.arange(size + 1), nodes)
    return (index.offsets[at] - bounds[number]).astype(np.int32)

  def column(values):
    def block(number):
      part = np.asarray(values[bounds[number] : bounds[number + 1]])
      pad = [(0, longest - len(part))] + [(0, 0)] * (part.ndim - 1)
      return np.pad(part, pad)

    return Blocks((longest * count, *values.shape[1:]), values.dtype, block)

  return index.replace(
    offsets=Blocks(((size + 1) * count,), np.dtype(np.int32), offsets),
    **{name: column(getattr(index, name)) for name in columns},
  )


def bytes_per_device(tree) -> dict[str, int]:
  """Bytes that each array of a pytree takes on one device, by its path."""
  sizes = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    shape = leaf.sharding.shard_shape(leaf.shape)
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    sizes[name] = math.prod(shape) * leaf.dtype.itemsize
  return sizes
