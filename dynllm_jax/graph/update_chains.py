"""The ordered update of node memories after a batch (SPEC 3.10).

Events of one node form a chain: the state after one update is the hidden
state of the next. Chains of different nodes are independent, so update number
r of every node (round r) runs at once. Round 0 takes all rows together; later
rounds, which are short, are cut into blocks of rows, so the work follows the
events and not rounds times batch. Users and items are independent too: where a
step of a loop costs more than its rows, both sides take their steps together.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import chain_kernel
from dynllm_jax.kernels import platforms
from dynllm_jax.kernels import row_sums
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Params

# Rows of a round that one step of the loop updates. On a CPU rows cost time,
# elsewhere steps do.
BLOCK = 64
WIDE_BLOCK = 1024
_NO_ROW = sharded_table.NO_ROW  # an index that a scatter drops

# Whether a GPU walks the chains in one kernel, where that is made for them.
KERNEL = True


class Cell(NamedTuple):
  """A recurrent cell.

  Attributes:
    step: `(params, hidden f32[rows, width], inputs [rows, ...]) ->
      f32[rows, width]`.
    gated: the same in the form that a kernel takes; None for a cell that has
      no such form.
  """

  step: Callable[[Params, Array, Array], Array]
  gated: chain_kernel.Gated | None = None


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
    order: i32[rows + WIDE_BLOCK], rows by round; unused rows last.
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


class Side(NamedTuple):
  """What the updates of one side start from.

  Attributes:
    params: of the side's cell.
    hidden: f32[updates, width], the hidden state of each chain's first update;
      other rows are not read.
    inputs: f32[updates, input_width].
    chain: the chains.
  """

  params: Params
  hidden: Array
  inputs: Array
  chain: Chains


_Carry = tuple[jax.Array, jax.Array]  # how far a side is; states or gradients

# For the backward pass: the sides, and their states.
_Residuals = tuple[tuple[Side, ...], tuple[Array, ...]]


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
    order=jnp.pad(order, (0, WIDE_BLOCK)),
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
  sums = row_sums.sum_rows(values, at, size)
  counts = jnp.zeros([size], jnp.int32).at[at].add(1, mode='drop')
  return sums / jnp.maximum(counts, 1).astype(values.dtype)[:, None]


@jax.custom_vjp
def at_first_event(chain: Chains, values: Array) -> Array:
  """The value of each update's first event.

  Args:
    chain: the updates.
    values: f32[events, width].

  Returns:
    f32[events, width], a row for each update.
  """
  return values[chain.first_event]


def _first_forward(chain: Chains, values: Array) -> tuple[Array, Chains]:
  return values[chain.first_event], chain


def _first_backward(chain: Chains, cotangent: Array) -> tuple[None, Array]:
  # An event asks its update whether it is the first one: nothing is added up.
  update = jnp.minimum(chain.update_of_event, len(cotangent) - 1)
  is_first = chain.first_event[update] == jnp.arange(len(cotangent))
  is_first &= chain.update_of_event != _NO_ROW
  return None, jnp.where(is_first[:, None], cotangent[update], 0.0)


at_first_event.defvjp(_first_forward, _first_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_chains(
  cells: tuple[Cell, ...], sides: tuple[Side, ...]
) -> tuple[Array, ...]:
  """Applies recurrent cells along every chain (SPEC 3.10, ordered update).

  Args:
    cells: of each side.
    sides: what their updates start from.

  Returns:
    For each side f32[updates, width], the state after each update; zero where
    unused.
  """
  return _run_forward(cells, sides)[0]


def _run_rounds(
  kernel: Callable[..., tuple[Array, ...]],
  going_on: Callable[[Side, _Carry], Array],
  step: Callable[[int, Cell, Side, _Carry], _Carry],
  cells: tuple[Cell, ...],
  sides: tuple[Side, ...],
  carries: tuple[_Carry, ...],
) -> tuple[Array, ...]:
  """Steps through the rounds of all sides, in the way of the platform.

  On a CPU a side after the other, on a GPU in one kernel if it is made for all
  cells and widths, elsewhere in one loop.

  Args:
    kernel: `chain_kernel.forward` or `backward`.
    going_on: whether a side has rounds left.
    step: `(rows of a block, cell, side, carry) -> carry`, a block of a round.
      It changes nothing where no round is left.
    cells, sides: of `run_chains`.
    carries: of each side before the loop.

  Returns:
    For each side what its carry holds after the loop.
  """

  def run(
    size: int,
    cells: tuple[Cell, ...],
    sides: tuple[Side, ...],
    carries: tuple[_Carry, ...],
  ) -> tuple[Array, ...]:
    carries = jax.lax.while_loop(
      lambda carries: functools.reduce(
        jnp.logical_or, map(going_on, sides, carries)
      ),
      lambda carries: tuple(
        map(functools.partial(step, size), cells, sides, carries)
      ),
      carries,
    )
    return tuple(values for _, values in carries)

  def apart(
    sides: tuple[Side, ...], carries: tuple[_Carry, ...]
  ) -> tuple[Array, ...]:
    return tuple(
      run(BLOCK, (cell,), (side,), (carry,))[0]
      for cell, side, carry in zip(cells, sides, carries)
    )

  ways = {'cpu': apart}
  gated = tuple(cell.gated for cell in cells if cell.gated)
  if KERNEL and len(gated) == len(cells) and all(map(_kernel_takes, sides)):

    def walk(
      sides: tuple[Side, ...], carries: tuple[_Carry, ...]
    ) -> tuple[Array, ...]:
      values = kernel(gated, tuple(map(_walk, gated, sides, carries)))
      return tuple(
        jnp.where(_used(side), x, 0.0) for side, x in zip(sides, values)
      )

    ways['cuda'] = walk
  return jax.lax.platform_dependent(
    sides, carries, default=functools.partial(run, WIDE_BLOCK, cells), **ways
  )


def _kernel_takes(side: Side) -> bool:
  """Whether the kernel is made for a side's widths."""
  return chain_kernel.takes(side.hidden.shape[1], side.inputs.shape[1])


def _walk(
  cell: chain_kernel.Gated, side: Side, carry: _Carry
) -> chain_kernel.Walk:
  """A side as the kernel takes it, chains sorted by length."""
  chain, index = side.chain, jnp.arange(len(side.hidden))
  end = jax.lax.cummin(
    jnp.where(chain.last, index + 1, len(index)), reverse=True
  )
  begins = chain.first & (index < chain.num_updates)
  lengths = jnp.where(begins, end - index, 0)
  starts = jnp.argsort(-lengths, stable=True)

  matrix, bias = cell.weights(side.params)
  return chain_kernel.Walk(
    starts=starts.astype(jnp.int32),
    lengths=lengths[starts].astype(jnp.int32),
    matrix=matrix,
    bias=bias,
    hidden=side.hidden,
    inputs=side.inputs,
    mixed=side.hidden @ matrix,
    grads=carry[1],
  )


def _used(side: Side) -> Array:
  """bool[updates, 1], rows that hold an update."""
  return (jnp.arange(len(side.hidden)) < side.chain.num_updates)[:, None]


def _block(
  chain: Chains, size: int, begin: Array, end: Array
) -> tuple[Array, Array]:
  """Rows `order[begin:end]`, at most `size`, to read from and to write to.

  Two i32[size]: where there are fewer rows, row 0 is read and none written.
  """
  rows = jax.lax.dynamic_slice(chain.order, [begin], [size])
  real = jnp.arange(size) < end - begin
  return jnp.where(real, rows, 0), jnp.where(real, rows, _NO_ROW)


def _read_block(table: Array, rows: Array) -> Array:
  """`table[rows]`.

  Read where it is used, it would keep a CPU from computing several values of a
  cell at once.
  """

  def read(table: Array, rows: Array) -> Array:
    return table[rows]

  apart = functools.partial(barriers.fusion_barrier, read)
  found: Array = platforms.on_cpu(apart, read, table, rows)
  return found


def _run_forward(
  cells: tuple[Cell, ...], sides: tuple[Side, ...]
) -> tuple[tuple[Array, ...], _Residuals]:
  # Round 0, all rows at once. This is right for the first update of every
  # chain; the others are written over, a block of a round at a time.
  first = tuple(
    jnp.where(
      _used(side), cell.step(side.params, side.hidden, side.inputs), 0.0
    )
    for cell, side in zip(cells, sides)
  )

  def step(size: int, cell: Cell, side: Side, carry: _Carry) -> _Carry:
    begin, states = carry
    # Where the other side has more rounds, `begin` may be past the last row.
    round_end = side.chain.round_end[jnp.minimum(begin, len(states) - 1)]
    end = jnp.minimum(begin + size, round_end)
    rows, place = _block(side.chain, size, begin, end)
    inputs = _read_block(side.inputs, rows)
    new = cell.step(side.params, states[rows - 1], inputs)
    return jnp.maximum(begin, end), states.at[place].set(new, mode='drop')

  states = _run_rounds(
    chain_kernel.forward,
    lambda side, carry: carry[0] < side.chain.num_updates,
    step,
    cells,
    sides,
    tuple(
      (side.chain.round_end[0], states) for side, states in zip(sides, first)
    ),
  )
  return states, (sides, states)


def _run_backward(
  cells: tuple[Cell, ...],
  residuals: _Residuals,
  cotangents: tuple[Array, ...],
) -> tuple[tuple[Side, ...]]:
  sides, states = residuals

  # Every update with the state that it started from.
  sides = tuple(
    side._replace(
      hidden=jnp.where(
        side.chain.first[:, None], side.hidden, jnp.roll(after, 1, axis=0)
      )
    )
    for side, after in zip(sides, states)
  )

  # Rounds backwards: what reaches a state goes on to the state before it.
  def step(size: int, cell: Cell, side: Side, carry: _Carry) -> _Carry:
    end, grads = carry
    # Where the other side has more rounds, this one stays at its first.
    round_start = side.chain.round_start[jnp.maximum(end - 1, 0)]
    begin = jnp.maximum(end - size, round_start)
    begin = jnp.where(end > side.chain.round_end[0], begin, end)
    rows, place = _block(side.chain, size, begin, end)
    inputs = _read_block(side.inputs, rows)
    _, pullback = jax.vjp(
      lambda start: cell.step(side.params, start, inputs), side.hidden[rows]
    )
    (reached,) = pullback(grads[rows])
    previous = jnp.where(place == _NO_ROW, _NO_ROW, place - 1)
    return begin, grads.at[previous].add(reached, mode='drop')

  grads = _run_rounds(
    chain_kernel.backward,
    lambda side, carry: carry[0] > side.chain.round_end[0],
    step,
    cells,
    sides,
    tuple(
      (side.chain.num_updates, jnp.where(_used(side), cotangent, 0.0))
      for side, cotangent in zip(sides, cotangents)
    ),
  )
  return (tuple(map(_gradients, cells, sides, grads)),)


def _gradients(cell: Cell, side: Side, grads: Array) -> Side:
  """The gradients of what a side's updates start from.

  Args:
    cell: of the side.
    side: its `hidden` being the state that every update started from.
    grads: f32[updates, width], what reaches each state, through the later
      updates of its chain too.

  Returns:
    Side; its chain has none.
  """
  # Parameters and inputs take theirs from all rows at once.
  _, pullback = jax.vjp(cell.step, side.params, side.hidden, side.inputs)
  params, hidden, inputs = pullback(grads)
  hidden = jnp.where(side.chain.first[:, None], hidden, 0.0)
  return Side._make((params, hidden, inputs, None))


run_chains.defvjp(_run_forward, _run_backward)
