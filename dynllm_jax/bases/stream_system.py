"""The System of a network over node memories."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.bases import flax_network
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import online_counts
from dynllm_jax.graph.pending_updates import empty_pending
from dynllm_jax.kernels import barriers
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import NodeMemory
from dynllm_jax.types import NodeTables
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings

_BLOCK = 1 << 12  # nodes whose rows are made at once


def build(network: StreamNetwork, **hooks: Any) -> System:
  """Makes the system, trained on batches in the order of time.

  Args:
    network: its `embed` and `update` are the system's.
    **hooks: optional fields of `System`.

  Returns:
    The system.
  """
  widths, c = network.widths, network.config

  def init(
    key: jax.Array, inputs: Inputs, capacity: int
  ) -> tuple[Params, Memory]:
    empty = functools.partial(
      memory_lib.empty, capacity=capacity, dtype=c.memory_dtype
    )
    memory = Memory(
      user=empty(inputs.num_users, widths.user),
      item=empty(inputs.num_items, widths.item) if widths.item else None,
      counts=online_counts.empty(inputs.num_items, c.count_successors)
      if c.count_terms
      else None,
    )

    nobody = jnp.zeros([1], jnp.int32)
    params = flax_network.init_params(
      network,
      key,
      memory,
      inputs,
      empty_pending(1, widths.vector, widths.vector),
      users=nobody,
      user_times=nobody,
      items=nobody,
      item_time=jnp.int32(0),
      method='touch',
    )
    return params, memory

  def reset(memory: Memory) -> Memory:
    return Memory(
      user=memory_lib.reset(memory.user),
      item=None if memory.item is None else memory_lib.reset(memory.item),
      counts=None
      if memory.counts is None
      else online_counts.reset(memory.counts),
    )

  def embed(
    params: Params,
    memory: Memory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    return flax_network.call(
      network,
      params,
      memory,
      inputs,
      users=users,
      user_times=user_times,
      items=items,
      item_time=item_time,
      key=key,
      method='embed',
    )

  def update(
    params: Params, memory: Memory, inputs: Inputs, pending: Pending
  ) -> Memory:
    variables = {'params': params}
    memory_after: Any = network.apply(
      variables, memory, inputs, pending, method='update'
    )
    if memory.counts is None:
      return memory_after
    return memory_after.replace(
      counts=online_counts.add(
        memory.counts, inputs.user_graph, pending.events, c.count_depth
      )
    )

  def map_texts(params: Params, inputs: Inputs) -> Array:
    def of_block(items: Array) -> Array:
      mapped: Any = network.apply(
        {'params': params}, inputs, items, method='map_texts'
      )
      return mapped

    mapped: Array = _by_block(of_block, len(inputs.item_text))
    return mapped

  def tabulate(params: Params, memory: Memory, inputs: Inputs) -> NodeTables:
    assert memory.item is not None
    of_side = functools.partial(_tabulate, network, params, memory, inputs)
    return NodeTables(
      item=of_side('item', memory.item), user=of_side('user', memory.user)
    )

  return System(
    feed='stream',
    by_time=False,
    init=init,
    reset=reset,
    embed=embed,
    update=update,
    map_texts=map_texts if c.item_text else None,
    tabulate=tabulate if network.attends else None,
    **hooks,
  )


def _by_block(of_block: Callable[[Array], Any], num_rows: int) -> Any:
  """A table of nodes, made a block at a time, so that it takes little room.

  Args:
    of_block: from i32[nodes] to a pytree of arrays [nodes, ...].
    num_rows: of the table.
  """
  nodes = jnp.arange(num_rows + -num_rows % _BLOCK, dtype=jnp.int32)
  nodes = jnp.minimum(nodes, num_rows - 1).reshape(-1, _BLOCK)
  return jax.tree.map(
    lambda x: x.reshape(-1, *x.shape[2:])[:num_rows],
    jax.lax.map(of_block, nodes),
  )


def _tabulate(
  network: StreamNetwork,
  params: Params,
  memory: Memory,
  inputs: Inputs,
  side: str,
  states: NodeMemory,
) -> Any:
  """The table of one side (SPEC 5.5), as `System.tabulate` says.

  Args:
    network: of the system.
    params: of the network.
    memory: both sides.
    inputs: with the tables before, or without.
    side: 'user' or 'item'.
    states: of the side.
  """

  def of_nodes(nodes: Array) -> Any:
    return network.apply(
      {'params': params}, memory, inputs, side, nodes, method='table_rows'
    )

  if inputs.tables is None:
    return _by_block(of_nodes, len(states.time))
  nodes = states.fresh_nodes
  rows = of_nodes(nodes)
  written = barriers.after(nodes > 0, jax.tree.leaves(rows)[0])
  return sharded_table.write_rows(
    getattr(inputs.tables, side),
    jnp.where(written, nodes, sharded_table.NO_ROW),
    rows,
  )
