"""The ordered update of node memories after a batch (SPEC 3.10).

Events of one node form a chain: the state after one update is the hidden
state of the next. Chains of different nodes are independent, so update number
r of every node (round r) runs at once. Round 0 takes all rows together; later
rounds, which are short, are cut into blocks of rows, so the work follows the
events and not rounds times batch.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Params

BLOCK = 64  # rows of a round that one step of the loop updates
_NO_ROW = sharded_table.NO_ROW  # an index that a scatter drops

# `(params, hidden, inputs) -> new hidden`, rows [rows, width].
Cell = Callable[[Params, Array, Array], Array]


class Chains(NamedTuple):
  """The updates of one side after a batch, sorted by node, then time.

  An update is a group of events of one node at one time. A batch has at most as
  many updates as events; rows past the last update are unused.

  Attributes:
    update_of_event: i32[events], the row of each event's update; NO_ROW for
      masked events.
    first_event: i32[rows], the first event of each update, in log order.
    nodes: i32[rows], 0 where unused.
    times: i32[rows], seconds.
    previous_times: i32[rows], seconds of the node's event before, -1 without
      one.
    first: bool[rows], whether the update begins its chain. If it does not, the
      row before holds its predecessor.
    last: bool[rows], whether it ends its chain.
    order: i32[rows + BLOCK], rows by round; unused rows last.
    round_start: i32[rows], where in `order` the round of `order[k]` starts.
    round_end: i32[rows], where it ends.
    num_updates: i32[].
  """

  update_of_event: jax.Array
  first_event: jax.Array
  nodes: jax.Array
  times: jax.Array
  previous_times: jax.Array
  first: jax.Array
  last: jax.Array
  order: jax.Array
  round_start: jax.Array
  round_end: jax.Array
  num_updates: jax.Array


_Carry = tuple[jax.Array, jax.Array]  # how far a loop is; states or gradients

# For the backward pass: parameters, hidden states, inputs, chains, states.
_Residuals = tuple[Params, Array, Array, Chains, jax.Array]


def make_chains(
  nodes: Array,
  times: Array,
  mask: Array,
  last_times: Array,
  merge_ties: bool = True,
) -> Chains:
  """Sorts a batch's events into updates, chains and rounds.

  Args:
    nodes: i32[events].
    times: i32[events], seconds, ascending.
    mask: bool[events].
    last_times: i32[events], seconds of the last event of each event's node in
      memory, or -1.
    merge_ties: whether a node's events of one time form one update.

  Returns:
    The chains.
  """
  # What follows sorts and loops over the batch; every device does all of it.
  nodes, times, mask, last_times = sharded_table.replicate(
    (nodes, times, mask, last_times)
  )
  size = len(nodes)

  # Events by node, then time, masked ones last. The sort is stable, so that
  # events of one time stay in the order of the log.
  key = jnp.where(mask, nodes, _NO_ROW)
  by_node = jnp.lexsort((times, key))
  node, time, real = key[by_node], times[by_node], mask[by_node]

  # An update begins where the node or the time changes. Its row is its number.
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

  def per_update(values: Array, fill: int | bool) -> jax.Array:
    """The values at the first event of each update, and `fill` after them."""
    out = jnp.full([size], fill, values.dtype)
    return out.at[place].set(values, mode='drop')

  first = per_update(new_node, False)
  update_nodes = per_update(node, 0)
  update_times = per_update(time, 0)

  # An update's round is its distance from the beginning of its chain. Sorted by
  # round, the updates of a round lie side by side.
  index = jnp.arange(size, dtype=jnp.int32)
  used = index < count
  chain_start = jax.lax.cummax(jnp.where(first, index, 0))
  rounds = jnp.where(used, index - chain_start, _NO_ROW)
  order = jnp.argsort(rounds, stable=True).astype(jnp.int32)

  # Both ends of each row's round: the latest start up to a row, and the next
  # start after it, found by a running maximum forwards and minimum backwards.
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
    num_updates=count,
  )


def mean_by_update(chain: Chains, values: Array) -> Array:
  """The mean of the events' values in each update.

  Args:
    chain: the updates.
    values: f32[events, width].

  Returns:
    f32[events, width], a row for each update.
  """
  size = len(values)
  at = chain.update_of_event
  sums = jnp.zeros_like(values).at[at].add(values, mode='drop')
  counts = jnp.zeros([size], values.dtype).at[at].add(1.0, mode='drop')
  return sums / jnp.maximum(counts, 1.0)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_chains(
  cell: Cell, params: Params, hidden: Array, inputs: Array, chain: Chains
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


def _block(chain: Chains, begin: Array, end: Array) -> tuple[Array, Array]:
  """Rows `order[begin:end]`, at most BLOCK, to read from and to write to.

  Two i32[BLOCK]: where there are fewer rows, row 0 is read and none written.
  """
  rows = jax.lax.dynamic_slice(chain.order, [begin], [BLOCK])
  real = jnp.arange(BLOCK) < end - begin
  return jnp.where(real, rows, 0), jnp.where(real, rows, _NO_ROW)


def _run_forward(
  cell: Cell, params: Params, hidden: Array, inputs: Array, chain: Chains
) -> tuple[Array, _Residuals]:
  hidden, inputs = sharded_table.replicate((hidden, inputs))
  used = (jnp.arange(len(hidden)) < chain.num_updates)[:, None]

  # Round 0, all rows at once. This is right for the first update of every
  # chain; the others are written over, a block of a round at a time.
  first = jnp.where(used, cell(params, hidden, inputs), 0.0)

  def step(carry: _Carry) -> _Carry:
    begin, states = carry
    end = jnp.minimum(begin + BLOCK, chain.round_end[begin])
    rows, place = _block(chain, begin, end)
    new = cell(params, states[rows - 1], inputs[rows])
    return end, states.at[place].set(new, mode='drop')

  _, states = jax.lax.while_loop(
    lambda carry: carry[0] < chain.num_updates,
    step,
    (chain.round_end[0], first),
  )
  return states, (params, hidden, inputs, chain, states)


def _run_backward(
  cell: Cell, residuals: _Residuals, cotangent: Array
) -> tuple[Params, Array, Array, None]:
  params, hidden, inputs, chain, states = residuals
  cotangent = sharded_table.replicate(cotangent)
  before = jnp.roll(states, 1, axis=0)
  hidden = jnp.where(chain.first[:, None], hidden, before)
  used = (jnp.arange(len(hidden)) < chain.num_updates)[:, None]

  # Rounds backwards: what reaches a state goes on to the state before it.
  def step(carry: _Carry) -> _Carry:
    end, grads = carry
    begin = jnp.maximum(end - BLOCK, chain.round_start[end - 1])
    rows, place = _block(chain, begin, end)
    _, pullback = jax.vjp(
      lambda start: cell(params, start, inputs[rows]), hidden[rows]
    )
    (reached,) = pullback(grads[rows])
    previous = jnp.where(place == _NO_ROW, _NO_ROW, place - 1)
    return begin, grads.at[previous].add(reached, mode='drop')

  _, grads = jax.lax.while_loop(
    lambda carry: carry[0] > chain.round_end[0],
    step,
    (chain.num_updates, jnp.where(used, cotangent, 0.0)),
  )

  # Now `grads` is what reaches each state, through the later updates of its
  # chain too. Parameters and inputs take theirs from all rows at once.
  _, pullback = jax.vjp(cell, params, hidden, inputs)
  grad_params, grad_hidden, grad_inputs = pullback(grads)
  return (
    grad_params,
    jnp.where(chain.first[:, None], grad_hidden, 0.0),
    grad_inputs,
    None,
  )


run_chains.defvjp(_run_forward, _run_backward)
