"""Memory and collectives of programs, also for devices that are not here.

Programs are lowered from shapes alone, so that a log of billions of events
takes no memory.
"""

from collections.abc import Mapping
import functools
import math
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import ml_collections
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS
from dynllm_jax.types import Inputs
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import ROOM_FOR_ALL
from dynllm_jax.types import SameTimeItems
from dynllm_jax.types import TemporalGraph

_OPERATION = re.compile(
  r'^\s*(?:ROOT )?%?\S+ = (.*?) (all-gather|all-reduce|reduce-scatter|'
  r'all-to-all|collective-permute)(-start)?\(',
  re.MULTILINE,
)
_SHAPE = re.compile(r'\b(pred|[suf]\d+|bf16)\[([\d,]*)\]')
_BITS = {'pred': 8, 'bf16': 16}


class LogSize(NamedTuple):
  """The size of a log, from which the shapes of its arrays follow."""

  users: int
  items: int
  events: int
  windows: int  # facet profiles of a user
  texts: int  # facet texts on the devices
  llm_dim: int = 384
  longest: int = 100_000  # events of the busiest node
  unevenness: float = 1.1  # entries of an index's fullest block by the mean


class Collective(NamedTuple):
  """One collective operation in the text of a compiled program."""

  kind: str
  dtype: str
  shape: tuple[int, ...]  # of its largest array, on one device
  bytes: int  # of all its arrays, on one device


def collectives(text: str) -> list[Collective]:
  """The collectives in the text of a compiled program, in its order."""
  found = []
  for shapes, kind, start in _OPERATION.findall(text):
    arrays = [
      (dtype, tuple(int(n) for n in dims.split(',') if n))
      for dtype, dims in _SHAPE.findall(shapes)
    ]
    # The start of an asynchronous one lists operands, then results, then
    # scalars for its own use; the results count.
    if start and kind != 'all-reduce':
      arrays = [(dtype, shape) for dtype, shape in arrays if shape]
      arrays = arrays[len(arrays) // 2 :]
    sizes = [
      math.prod(shape) * _BITS.get(dtype, 0) // 8
      or math.prod(shape) * int(re.sub(r'\D', '', dtype) or 0) // 8
      for dtype, shape in arrays
    ]
    largest = max(range(len(sizes)), key=sizes.__getitem__, default=None)
    if largest is not None:
      found.append(Collective(kind, *arrays[largest], sum(sizes)))
  return found


def abstract_inputs(size: LogSize, mesh: jax.sharding.Mesh) -> Inputs:
  """The inputs of a log as arrays that take no memory.

  Args:
    size: of the log.
    mesh: over whose devices tables are padded to lie evenly.

  Returns:
    The inputs; each array is one number, broadcast to its shape.
  """
  shards = mesh.shape[sharded_table.NODES]
  even = lambda count: -(-count // shards) * shards
  shape = lambda *dims: np.broadcast_to(np.int32(0), dims)
  half = lambda *dims: np.broadcast_to(np.float16(0), dims)
  slack = size.unevenness if shards > 1 else 1.0

  def offsets(nodes: int) -> np.ndarray:
    return shape((-(-nodes // shards) + 1) * shards)

  def entries(count: int, *dims: int) -> np.ndarray:
    return shape(even(int(count * slack)), *dims)

  def graph(nodes: int) -> TemporalGraph:
    return TemporalGraph(
      offsets(nodes + 1),
      entries(size.events),
      entries(size.events),
      size.longest,
    )

  profiles = size.users * size.windows
  log = shape(even(size.events))
  return Inputs(
    users=log,
    items=log,
    times=log,
    user_graph=graph(size.users),
    item_graph=graph(size.items),
    same_time=SameTimeItems(
      offsets(size.events), entries(size.events), log, 1000
    ),
    train_events=np.int32(0),
    mean_return_days=np.float32(1),
    text_mean=np.zeros(size.llm_dim, np.float32),
    item_text=half(even(size.items + 1), size.llm_dim),
    facets=FacetBank(
      texts=half(even(size.texts), size.llm_dim),
      offsets=offsets(size.users + 1),
      closes=entries(profiles),
      index=entries(profiles, len(FACETS)),
      longest=size.windows,
      present=shape(even(size.texts)),
    ),
    num_users=size.users,
    num_items=size.items,
  )


def on_mesh(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """A pytree's arrays as shapes, with the shardings that they get on a mesh."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s),
    tree,
    device_mesh.shardings(mesh, tree),
  )


class Programs(NamedTuple):
  """The two programs of a run, lowered for a mesh."""

  train: Any
  rank: Any
  tables: dict[str, tuple[int, ...]]  # shapes of the tables devices share


def lower(
  config: ml_collections.ConfigDict,
  size: LogSize,
  mesh: jax.sharding.Mesh,
  num_batches: int = 2,
  own_limits: Mapping[str, OwnLimits] | None = None,
) -> Programs:
  """Lowers training and ranking for a mesh, also of devices not here.

  Args:
    config: of the system, with its batch sizes.
    size: of the log.
    mesh: with the axes `data` and `nodes`.
    num_batches: of a chunk. It hardly matters, as a program contains the code
      of one step, whatever the number.
    own_limits: of the plans of 'train' and 'eval'; None for room for all.

  Returns:
    The lowered programs, as the package runs them.
  """
  system = config_lib.system_module(config.model.name).build(config.model)
  trainer = train.make_trainer(system, config, mesh, 1000)
  inputs = abstract_inputs(size, mesh)
  limits = own_limits or {'train': ROOM_FOR_ALL, 'eval': ROOM_FOR_ALL}

  with sharded_table.use_mesh(mesh):
    state = jax.eval_shape(
      functools.partial(
        train.init_state, trainer, 0, capacity=config.train.batch_size
      ),
      inputs,
    )
    pending = jax.eval_shape(
      functools.partial(
        train.init_state, trainer, 0, capacity=config.eval.batch_size
      ),
      inputs,
    ).pending
    inputs, state, pending = (
      on_mesh(mesh, tree) for tree in (inputs, state, pending)
    )

    everywhere = NamedSharding(mesh, PartitionSpec())
    column = lambda dtype: jax.ShapeDtypeStruct(
      [num_batches], dtype, sharding=everywhere
    )
    batches = PlannedBatch(
      start=column(jnp.int32),
      size=column(jnp.int32),
      part=column(jnp.int32),
      ready=column(jnp.bool),
    )
    bound = BoundSystem(system, state.params, inputs)
    replayed = bound.replace(
      inputs=on_mesh(
        mesh, jax.eval_shape(evaluate.with_texts_mapped, bound).inputs
      )
    )
    memory = on_mesh(
      mesh,
      jax.eval_shape(
        functools.partial(
          evaluate.memory_for_replay, own_limits=limits['eval']
        ),
        replayed,
        state.memory,
        pending,
      ),
    )
    before = evaluate.ReplayState(memory, pending)
    tables = jax.eval_shape(evaluate.with_tables, replayed, before).tables
    before = before._replace(tables=on_mesh(mesh, tables))
    candidates = jax.ShapeDtypeStruct(
      [size.items + 1], jnp.bool, sharding=everywhere
    )

    lowered = (
      train.train_chunk.lower(
        trainer,
        feeds.EpochData(
          inputs,
          None,
          config.train.batch_size,
          own_limits=limits['train'],
        ),
        state,
        batches,
      ),
      evaluate.replay_chunk.lower(
        replayed,
        Ranking(candidates, config.eval.block_size),
        before,
        batches,
        column(jnp.bool),
        batch_size=config.eval.batch_size,
        own_limits=limits['eval'],
      ),
    )
    return Programs(*lowered, _tables({'memory': memory, 'inputs': inputs}))


def _tables(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes of all arrays that devices share, by their paths in a pytree."""
  named = jax.tree_util.tree_leaves_with_path(tree)
  if sharded_table.num_shards() == 1:
    return {}
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf.shape
    for path, leaf in named
    if leaf.sharding.spec != PartitionSpec()
  }


def whole_tables(
  found: list[Collective], tables: dict[str, tuple[int, ...]]
) -> list[str]:
  """The shared tables that a program puts together whole on one device.

  Args:
    found: of `collectives`.
    tables: of `Programs`.

  Returns:
    Their names. A table is recognized by its shape.
  """
  gathered = {c.shape for c in found if c.kind in ('all-gather', 'all-reduce')}
  return sorted(name for name, shape in tables.items() if shape in gathered)


def facts(compiled: Any) -> dict[str, Any]:
  """Bytes, operations and collectives of a compiled program on one device."""
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis() or {}
  if isinstance(cost, list):
    cost = cost[0]

  found = collectives(compiled.as_text())
  by_kind = {}
  for c in found:
    count, size = by_kind.get(c.kind, (0, 0))
    by_kind[c.kind] = count + 1, size + c.bytes

  return {
    'arguments_bytes': memory.argument_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'peak_bytes': (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
    ),
    'flops': cost.get('flops', 0.0),
    'bytes_accessed': cost.get('bytes accessed', 0.0),
    'collectives': {
      kind: {'count': count, 'bytes': size}
      for kind, (count, size) in sorted(by_kind.items())
    },
    'collective_bytes': sum(c.bytes for c in found),
  }
