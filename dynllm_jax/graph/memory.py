"""Node memory: the state of every user or item, read and written (SPEC 3.3).

The table of all states stays out of the gradient, which reaches only the rows
that the latest update wrote and the initial state (types.NodeMemory).
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import row_sums
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import NodeMemory

# What states may be kept as. Half of the bytes are float16, as of texts: states
# are near 1 in size, where bfloat16 has three bits less of them.
DTYPES = ('float32', 'float16')

_Residuals = tuple[Array, Array, Array]  # slots read, unseen, fresh


def empty(
  num_nodes: int, width: int, capacity: int, dtype: str = 'float32'
) -> NodeMemory:
  """The memory of a side before the first event.

  Args:
    num_nodes: nodes of the side; a row of padding is added.
    width: of a node's state.
    capacity: events of an update at most.
    dtype: of DTYPES, what states are kept as; they are computed in float32.
  """
  rows = sharded_table.round_up_to_shards(num_nodes + 1)
  return NodeMemory(
    state=jnp.zeros([rows, width], dtype),
    time=jnp.full([rows], -1, jnp.int32),
    fresh=jnp.zeros([capacity, width], jnp.float32),
    fresh_nodes=jnp.zeros([capacity], jnp.int32),
    slot=jnp.zeros([rows], jnp.int32),
  )


def reset(memory: NodeMemory) -> NodeMemory:
  """The memory as before the first event.

  The table keeps its old rows, which a time of -1 keeps from being read.
  """
  return memory.replace(
    time=jnp.full_like(memory.time, -1),
    fresh=jnp.zeros_like(memory.fresh),
    fresh_nodes=jnp.zeros_like(memory.fresh_nodes),
  )


def read(memory: NodeMemory, nodes: Array, initial: Array) -> Array:
  """The state `h(t^-)` of some nodes.

  Gradients flow to `initial` and to the rows of the latest update, never to
  the whole table.

  Args:
    memory: one side.
    nodes: i32[...].
    initial: f32[width], the learned state of a node without an event.

  Returns:
    f32[..., width].
  """
  return _read(
    memory.fresh, initial, memory.replace(fresh=None), jnp.asarray(nodes)
  )


@jax.custom_vjp
def _read(
  fresh: Array, initial: Array, memory: NodeMemory, nodes: Array
) -> Array:
  return _read_forward(fresh, initial, memory, nodes)[0]


def _read_forward(
  fresh: Array, initial: Array, memory: NodeMemory, nodes: Array
) -> tuple[Array, _Residuals]:
  # The table holds the values of the fresh rows too, so that one read serves
  # all nodes; the backward pass sends gradients to `fresh` instead.
  slot, rows, time = sharded_table.read_rows(
    (memory.slot, memory.state, memory.time), nodes
  )
  is_fresh = (memory.fresh_nodes[slot] == nodes) & (nodes > 0)
  unseen = time < 0
  return jnp.where(unseen[..., None], initial, rows), (
    jnp.where(is_fresh, slot, sharded_table.NO_ROW),
    unseen,
    fresh,
  )


def _read_backward(
  residuals: _Residuals, cotangent: Array
) -> tuple[Array, Array, None, None]:
  slot, unseen, fresh = residuals
  rows = cotangent.reshape(-1, cotangent.shape[-1])
  unseen = unseen.reshape(-1).astype(rows.dtype)
  return (
    row_sums.sum_rows(rows, slot.reshape(-1), len(fresh))
    if sharded_table.is_one_device()
    else sharded_table.add_rows(len(fresh), slot.reshape(-1), rows),
    unseen @ rows,
    None,
    None,
  )


_read.defvjp(_read_forward, _read_backward)


def last_times(memory: NodeMemory, nodes: Array) -> Array:
  """Seconds of the last event of each node, i32[...]; -1 without one.

  Args:
    memory: one side.
    nodes: i32[...].
  """
  return sharded_table.read_rows(memory.time, nodes)


def write(
  memory: NodeMemory, nodes: Array, rows: Array, times: Array
) -> NodeMemory:
  """Stores rows; at most one for each node, node 0 for none.

  Args:
    memory: one side.
    nodes: i32[capacity]; on a mesh, each device's own (owners.py).
    rows: f32[capacity, width].
    times: i32[capacity], seconds of each node's last event.

  Returns:
    The memory, with `rows` as its fresh rows.
  """
  stopped = jax.lax.stop_gradient(rows)
  # The rows were computed from the table: all reads come before the write.
  state, time, slot = sharded_table.write_rows(
    (memory.state, memory.time, memory.slot),
    jnp.where(barriers.after(nodes > 0, stopped), nodes, sharded_table.NO_ROW),
    (
      stopped.astype(memory.state.dtype),
      times,
      jnp.arange(len(nodes), dtype=jnp.int32),
    ),
  )
  return NodeMemory(
    state=state,
    time=time,
    fresh=rows,
    fresh_nodes=sharded_table.replicate(nodes),
    slot=slot,
  )


def shaped_as(memory: Any, before: Any) -> Any:
  """A memory with arrays in the shapes of an earlier one.

  How many rows are fresh follows from the batch and the mesh. They serve the
  gradients of the step that wrote them, and nobody reads them later: where
  their number differs they are zeros.

  Args:
    memory: of a system.
    before: the same, of another number of fresh rows.

  Returns:
    The memory.
  """
  return jax.tree.map(
    lambda x, old: (
      x if x.shape == old.shape else jnp.zeros(old.shape, old.dtype)
    ),
    memory,
    before,
  )
