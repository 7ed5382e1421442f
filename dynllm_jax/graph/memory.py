"""Node memory: reading it, and the ordered update after a batch (SPEC 3.10).

Events of one node form a chain: the state after one update is the hidden
state of the next. Chains of different nodes are independent, so update number
r of every node (round r) runs at once. Round 0 takes all rows together; later
rounds, which are short, are cut into blocks of rows, so the work follows the
events and not rounds times batch.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import NodeMemory

BLOCK = 64  # rows of a round that one step of the loop updates
_NO_ROW = sharded_table.NO_ROW  # an index that a scatter drops

Cell = Callable[[Any, Array, Array], Array]  # (params, hidden, inputs) -> new


def empty(num_nodes: int, width: int, capacity: int) -> NodeMemory:
  """The memory of a side before the first event (padding row included)."""
  rows = sharded_table.round_up_to_shards(num_nodes + 1)
  return NodeMemory(
    state=jnp.zeros([rows, width], jnp.float32),
    time=jnp.full([rows], -1, jnp.int32),
    fresh=jnp.zeros([capacity, width], jnp.float32),
    fresh_nodes=jnp.zeros([capacity], jnp.int32),
    slot=jnp.zeros([rows], jnp.int32),
  )


def reset(memory: NodeMemory) -> NodeMemory:
  """The memory as before the first event; stale rows can never be read."""
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
def _read(fresh, initial, memory, nodes):
  return _read_forward(fresh, initial, memory, nodes)[0]


def _read_forward(fresh, initial, memory, nodes):
  # The table holds the fresh rows' values; gradients find their way below.
  slot, rows, time = sharded_table.read_rows(
    (memory.slot, memory.state, memory.time), nodes
  )
  is_fresh = (memory.fresh_nodes[slot] == nodes) & (nodes > 0)
  unseen = time < 0
  return jnp.where(unseen[..., None], initial, rows), (
    jnp.where(is_fresh, slot, _NO_ROW),
    unseen,
    fresh,
  )


def _read_backward(residuals, cotangent):
  slot, unseen, fresh = residuals
  rows = cotangent.reshape(-1, cotangent.shape[-1])
  unseen = unseen.reshape(-1).astype(rows.dtype)
  return (
    jnp.zeros_like(fresh).at[slot.reshape(-1)].add(rows, mode='drop'),
    unseen @ rows,
    None,
    None,
  )


_read.defvjp(_read_forward, _read_backward)


def last_times(memory: NodeMemory, nodes: Array) -> Array:
  """Seconds of the last event of some nodes, i32[...], -1 without one."""
  return sharded_table.read_rows(memory.time, nodes)


def write(
  memory: NodeMemory, nodes: Array, rows: Array, times: Array
) -> NodeMemory:
  """Stores rows; at most one for each node, node 0 for none.

  Args:
    memory: one side.
    nodes: i32[capacity].
    rows: f32[capacity, width].
    times: i32[capacity], seconds of each node's last event.

  Returns:
    The memory, with `rows` as its fresh rows.
  """
  rows = sharded_table.replicate(rows)
  stopped = jax.lax.stop_gradient(rows)
  # What is read of the table to compute the rows is read before it is written.
  state, time, slot = sharded_table.write_rows(
    (memory.state, memory.time, memory.slot),
    jnp.where(barriers.after(nodes > 0, stopped), nodes, _NO_ROW),
    (stopped, times, jnp.arange(len(nodes), dtype=jnp.int32)),
  )
  return NodeMemory(
    state=state, time=time, fresh=rows, fresh_nodes=nodes, slot=slot
  )


class Chains(NamedTuple):
  """The updates that a batch owes one side, sorted by node, then time.

  An update is a group of events of one node at one time. Row k - 1 is the
  predecessor of row k unless `first[k]`. Rows past the last update are unused.
  """

  update_of_event: Array  # i32[events], masked events: _NO_ROW
  first_event: Array  # i32[events], an update's first event in log order
  nodes: Array  # i32[events], 0 where unused
  times: Array  # i32[events]
  previous_times: Array  # i32[events], -1 where the node has no earlier event
  first: Array  # bool[events]
  last: Array  # bool[events]
  order: Array  # i32[events + BLOCK], rows by round; unused rows last
  round_start: Array  # i32[events], where the round of `order[k]` starts
  round_end: Array  # i32[events], and ends
  count: Array  # i32[], number of updates


def chains(
  nodes: Array,
  times: Array,
  mask: Array,
  last_times: Array,
  merge_ties: bool = True,
) -> Chains:
  """Sorts a batch's events into updates and rounds.

  Args:
    nodes: i32[events].
    times: i32[events], seconds, ascending.
    mask: bool[events].
    last_times: i32[events], each event's node's last time in memory, or -1.
    merge_ties: whether a node's events of one time form one update.

  Returns:
    The chains.
  """
  size = len(nodes)
  # Sorts and loops over a batch: every device does all of them.
  nodes, times, mask, last_times = sharded_table.replicate(
    (nodes, times, mask, last_times)
  )
  key = jnp.where(mask, nodes, _NO_ROW)
  by_node = jnp.lexsort((times, key))  # stable: log order among ties
  node, time, real = key[by_node], times[by_node], mask[by_node]
  new_node = jnp.concatenate([jnp.ones([1], bool), node[1:] != node[:-1]])
  new_update = new_node | jnp.concatenate(
    [jnp.ones([1], bool), time[1:] != time[:-1]]
  )
  if not merge_ties:
    new_update = jnp.ones_like(new_update)
  new_update &= real
  row = jnp.cumsum(new_update, dtype=jnp.int32) - 1
  count = row[-1] + 1
  place = jnp.where(new_update, row, _NO_ROW)

  def per_update(values, fill):
    out = jnp.full([size], fill, values.dtype)
    return out.at[place].set(values, mode='drop')

  first = per_update(new_node, False)
  update_nodes = per_update(node, 0)
  update_times = per_update(time, 0)
  index = jnp.arange(size, dtype=jnp.int32)
  used = index < count
  chain_start = jax.lax.cummax(jnp.where(first, index, 0))
  rounds = jnp.where(used, index - chain_start, _NO_ROW)
  order = jnp.argsort(rounds, stable=True).astype(jnp.int32)
  sorted_rounds = rounds[order]
  starts = jnp.concatenate(
    [jnp.ones([1], bool), sorted_rounds[1:] != sorted_rounds[:-1]]
  )
  round_start = jax.lax.cummax(jnp.where(starts, index, 0))
  next_start = jnp.where(jnp.roll(starts, -1).at[-1].set(True), index + 1, size)
  round_end = jnp.minimum(jax.lax.cummin(next_start, reverse=True), count)
  before = jnp.concatenate([jnp.zeros([1], jnp.int32), update_times[:-1]])
  return Chains(
    update_of_event=jnp.full([size], _NO_ROW)
    .at[by_node]
    .set(jnp.where(real, row, _NO_ROW)),
    first_event=per_update(by_node.astype(jnp.int32), 0),
    nodes=update_nodes,
    times=update_times,
    previous_times=jnp.where(
      first, per_update(last_times[by_node], -1), before
    ),
    first=first,
    last=used & jnp.concatenate([first[1:], jnp.ones([1], bool)])
    | (index == count - 1),
    order=jnp.pad(order, (0, BLOCK)),
    round_start=round_start,
    round_end=round_end,
    count=count,
  )


def mean_by_update(chain: Chains, values: Array) -> Array:
  """The mean of the events' values in each update.

  Args:
    chain: the updates.
    values: f32[events, width].

  Returns:
    f32[events, width], a row an update.
  """
  size = len(values)
  at = chain.update_of_event
  sums = jnp.zeros_like(values).at[at].add(values, mode='drop')
  counts = jnp.zeros([size], values.dtype).at[at].add(1.0, mode='drop')
  return sums / jnp.maximum(counts, 1.0)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_chains(
  cell: Cell, params: Any, hidden: Array, inputs: Array, chain: Chains
) -> Array:
  """Applies a recurrent cell along every chain (SPEC 3.10, ordered update).

  Args:
    cell: `(params, hidden [rows, width], inputs [rows, ...]) -> [rows, width]`.
    params: of the cell.
    hidden: f32[updates, width], the hidden state of each chain's first update;
      other rows are not read.
    inputs: f32[updates, input_width].
    chain: the chains.

  Returns:
    f32[updates, width], the state after each update; zero where unused.
  """
  return _run_forward(cell, params, hidden, inputs, chain)[0]


def _block(chain: Chains, begin: Array, end: Array):
  """Rows `order[begin:end]`, at most BLOCK, to read from and to write to."""
  rows = jax.lax.dynamic_slice(chain.order, [begin], [BLOCK])
  real = jnp.arange(BLOCK) < end - begin
  return jnp.where(real, rows, 0), jnp.where(real, rows, _NO_ROW)


def _run_forward(cell, params, hidden, inputs, chain):
  hidden, inputs = sharded_table.replicate((hidden, inputs))
  used = (jnp.arange(len(hidden)) < chain.count)[:, None]
  # Right for the first update of every chain; the others are written over.
  first = jnp.where(used, cell(params, hidden, inputs), 0.0)

  def step(carry):
    begin, states = carry
    end = jnp.minimum(begin + BLOCK, chain.round_end[begin])
    rows, place = _block(chain, begin, end)
    new = cell(params, states[rows - 1], inputs[rows])
    return end, states.at[place].set(new, mode='drop')

  _, states = jax.lax.while_loop(
    lambda carry: carry[0] < chain.count, step, (chain.round_end[0], first)
  )
  return states, (params, hidden, inputs, chain, states)


def _run_backward(cell, residuals, cotangent):
  params, hidden, inputs, chain, states = residuals
  cotangent = sharded_table.replicate(cotangent)
  before = jnp.roll(states, 1, axis=0)
  hidden = jnp.where(chain.first[:, None], hidden, before)
  used = (jnp.arange(len(hidden)) < chain.count)[:, None]

  def step(carry):
    end, grads = carry
    begin = jnp.maximum(end - BLOCK, chain.round_start[end - 1])
    rows, place = _block(chain, begin, end)
    _, pullback = jax.vjp(
      lambda start: cell(params, start, inputs[rows]), hidden[rows]
    )
    (part,) = pullback(grads[rows])
    previous = jnp.where(place == _NO_ROW, _NO_ROW, place - 1)
    return begin, grads.at[previous].add(part, mode='drop')

  # What reaches each state, through later updates of its chain too; then all
  # rows at once.
  _, grads = jax.lax.while_loop(
    lambda carry: carry[0] > chain.round_end[0],
    step,
    (chain.count, jnp.where(used, cotangent, 0.0)),
  )
  _, pullback = jax.vjp(cell, params, hidden, inputs)
  grad_params, grad_hidden, grad_inputs = pullback(grads)
  return (
    grad_params,
    jnp.where(chain.first[:, None], grad_hidden, 0.0),
    grad_inputs,
    None,
  )


run_chains.defvjp(_run_forward, _run_backward)
