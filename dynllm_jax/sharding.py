"""The device mesh, and which axis of what is laid over it."""

import math

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import ml_collections
import numpy as np

from dynllm_jax.types import InputError


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
  if nodes < 1 or config.mesh.data < 0:
    raise InputError(
        f'config.mesh: data={config.mesh.data}, nodes={nodes} is not allowed; '
        'nodes is 1 or more, data 0 (all devices) or more')
  data = config.mesh.data or max(1, len(devices) // nodes)
  if data * nodes > len(devices):
    raise InputError(
        f'config.mesh: {data} x {nodes} devices asked for; '
        f'{len(devices)} {devices[0].platform} device(s) are here')
  for part in ('train', 'eval'):
    size = config[part].batch_size
    if size < 1:
      raise InputError(
          f'config.{part}.batch_size: {size} is not allowed; 1 or more')
    if size % data:
      raise InputError(
          f'config.{part}.batch_size: {size} events do not divide over '
          f'config.mesh.data = {data} devices; allowed: a multiple of {data}')
  return Mesh(
      np.array(devices[:data * nodes]).reshape(data, nodes),
      ('data', 'nodes'))


def replicate(mesh: Mesh, tree):
  """Places every array of a pytree on all devices of the mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def over_data(mesh: Mesh, tree):
  """Inside jit: lays the first axis of every array over `data`."""
  if mesh.size == 1:
    return tree
  return jax.lax.with_sharding_constraint(
      tree, NamedSharding(mesh, PartitionSpec('data')))


def bytes_per_device(tree) -> dict[str, int]:
  """Bytes that each array of a pytree takes on one device, by its path."""
  sizes = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    shape = leaf.sharding.shard_shape(leaf.shape)
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    sizes[name] = math.prod(shape) * leaf.dtype.itemsize
  return sizes
