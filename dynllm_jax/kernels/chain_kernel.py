"""Recurrent cells along chains of rows, as one kernel (GPU).

A loop of XLA launches some kernels a step and waits for the device to learn
whether there is another step. Here a program of the GPU takes a few chains and
walks them to their ends by itself: their hidden states stay in registers, and
the weights are read from a cache. All sides are in one launch. Chains come
sorted by length, the longest first, so that those of a program end together
and the longest ones begin at once.

Written in Pallas for Triton (`jax.experimental.pallas.triton`). Nothing is
added up across programs, so that two runs are equal to the last bit.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from dynllm_jax.types import Array
from dynllm_jax.types import Params

# Chains of a program: the fewest rows that Triton multiplies.
_ROWS = 16
_WIDTHS = (16, 32, 64, 128)  # a gate's weights must fit in shared memory
_WARPS = 8

Gates = tuple[Array, ...]  # f32[rows, width] each


class Gated(NamedTuple):
  """A recurrent cell with gates, `h' = combine(h, U h + b, x)`.

  Attributes:
    weights: `(params) -> (matrix f32[width, gates * width], bias f32[gates *
      width])`.
    combine: `(hidden, mixed, inputs) -> hidden`, all but the first a tuple of
      the gates, f32[rows, width] each; a row depends on that row alone.
  """

  weights: Callable[[Params], tuple[Array, Array]]
  combine: Callable[[Array, Gates, Gates], Array]


class Walk(NamedTuple):
  """The chains of one side, and what their rows hold.

  Attributes:
    starts: i32[chains], the first row of each chain, longest chain first.
    lengths: i32[chains], its rows, which lie one after the other; 0 where
      there is no chain.
    matrix: f32[width, gates * width].
    bias: f32[gates * width].
    hidden: f32[rows, width]. Forwards the hidden states that chains begin
      with, in their first rows; backwards those that every row began with.
    inputs: f32[rows, gates * width].
    mixed: f32[rows, gates * width], `hidden @ matrix`; read backwards only.
    grads: f32[rows, width], the gradients of the states, by what reads them
      after the walk; read backwards only.
  """

  starts: Array
  lengths: Array
  matrix: Array
  bias: Array
  hidden: Array
  inputs: Array
  mixed: Array
  grads: Array


def takes(width: int, input_width: int) -> bool:
  """Whether the kernel is made for states and inputs of these widths."""
  return width in _WIDTHS and input_width % width == 0


def forward(
  cells: tuple[Gated, ...], walks: tuple[Walk, ...], interpret: bool = False
) -> tuple[Array, ...]:
  """The state after each row.

  Args:
    cells: of each side.
    walks: their chains.
    interpret: whether to run the kernel on any device, slowly.

  Returns:
    For each side f32[rows, width]; rows that are in no chain may hold anything.
  """
  # What is not read needs not be there.
  nothing = jnp.zeros([1, 1])
  walks = tuple(x._replace(mixed=nothing, grads=nothing) for x in walks)
  return _call(_forward_rows, cells, walks, interpret)


def backward(
  cells: tuple[Gated, ...], walks: tuple[Walk, ...], interpret: bool = False
) -> tuple[Array, ...]:
  """What reaches each state, through the later rows of its chain too.

  Args:
    cells: of each side.
    walks: their chains.
    interpret: whether to run the kernel on any device, slowly.

  Returns:
    For each side f32[rows, width]; rows that are in no chain may hold anything.
  """
  return _call(_backward_rows, cells, walks, interpret)


def _call(
  walk_rows: Callable[..., None],
  cells: tuple[Gated, ...],
  walks: tuple[Walk, ...],
  interpret: bool,
) -> tuple[Array, ...]:
  """One launch, a program for each side and each group of its chains."""
  walks = tuple(_whole_groups(walk) for walk in walks)
  groups = [len(walk.starts) // _ROWS for walk in walks]
  product = functools.partial(
    _product, precision=None if interpret else _precision()
  )
  leaves, structure = jax.tree.flatten(walks)

  def kernel(*refs: Any) -> None:
    # From here on the arrays of a walk are references.
    sides: tuple[Any, ...] = jax.tree.unflatten(structure, refs[: len(leaves)])
    outputs = refs[len(leaves) :]
    group = pl.program_id(1)
    for n, (cell, side, output) in enumerate(zip(cells, sides, outputs)):

      @pl.when((pl.program_id(0) == n) & (group < groups[n]))
      def _(cell: Gated = cell, side: Any = side, output: Any = output) -> None:
        chains = pl.ds(group * _ROWS, _ROWS)
        walk_rows(
          product,
          cell.combine,
          side,
          output,
          side.starts[chains],
          side.lengths[chains],
        )

  after = pl.pallas_call(
    kernel,
    grid=(len(walks), max(groups)),
    out_shape=[
      jax.ShapeDtypeStruct(walk.hidden.shape, jnp.float32) for walk in walks
    ],
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    interpret=interpret,
    name=walk_rows.__name__.strip('_'),
  )(*leaves)
  return tuple(after)


def _whole_groups(walk: Walk) -> Walk:
  """The walk with a multiple of `_ROWS` chains, the further ones empty."""
  padding = (0, -len(walk.starts) % _ROWS)
  return walk._replace(
    starts=jnp.pad(walk.starts, padding), lengths=jnp.pad(walk.lengths, padding)
  )


def _gates(side: Any) -> list[Any]:
  """The columns of each gate."""
  width, total = side.matrix.shape
  return [pl.ds(first, width) for first in range(0, total, width)]


def _forward_rows(
  product: Callable[[Array, Array, int], Array],
  combine: Callable[..., Array],
  side: Any,
  states: Any,
  starts: Array,
  lengths: Array,
) -> None:
  """Walks a group of chains forwards; arrays of `side` are references."""

  def step(number: Array, hidden: Array) -> Array:
    is_there = number < lengths
    rows = jnp.where(is_there, starts + number, 0)
    new = combine(
      hidden,
      tuple(
        product(hidden, side.matrix[:, gate], 0) + side.bias[gate][None]
        for gate in _gates(side)
      ),
      tuple(side.inputs[rows, gate] for gate in _gates(side)),
    )
    _store(states, rows, new, is_there)
    return new

  jax.lax.fori_loop(0, jnp.max(lengths), step, side.hidden[starts, :])


def _backward_rows(
  product: Callable[[Array, Array, int], Array],
  combine: Callable[..., Array],
  side: Any,
  output: Any,
  starts: Array,
  lengths: Array,
) -> None:
  """Walks a group of chains backwards; arrays of `side` are references."""
  width = side.matrix.shape[0]
  longest = jnp.max(lengths)

  def add(number: Array, reached: Array) -> tuple[Array, Array]:
    """What reaches the states of a step in all, which is stored; their rows."""
    is_there = number < lengths
    rows = jnp.where(is_there, starts + number, 0)
    grads = jnp.where(is_there[:, None], side.grads[rows, :] + reached, 0.0)
    _store(output, rows, grads, is_there)
    return grads, rows

  def step(taken: Array, reached: Array) -> Array:
    grads, rows = add(longest - 1 - taken, reached)
    _, pullback = jax.vjp(
      lambda hidden, mixed: combine(
        hidden, mixed, tuple(side.inputs[rows, gate] for gate in _gates(side))
      ),
      side.hidden[rows, :],
      tuple(
        side.mixed[rows, gate] + side.bias[gate][None] for gate in _gates(side)
      ),
    )
    reached, of_mixed = pullback(grads)
    for gate, of_gate in zip(_gates(side), of_mixed):
      reached += product(of_gate, side.matrix[:, gate], 1)
    return reached

  # The first row of a chain is stored; nothing before it is reached.
  reached = jax.lax.fori_loop(
    0, longest - 1, step, jnp.zeros([_ROWS, width], jnp.float32)
  )
  add(jnp.int32(0), reached)


def _store(ref: Any, rows: Array, values: Array, is_there: Array) -> None:
  """Writes the rows that are there."""
  # The interpreter stores old values where the mask is False: never over a row
  # of another chain, but past the end, where nothing is stored.
  rows = jnp.where(is_there, rows, ref.shape[0])
  columns = jnp.arange(values.shape[1])
  rows, columns, mask = (
    jnp.broadcast_to(x, values.shape)
    for x in (rows[:, None], columns[None], is_there[:, None])
  )
  triton.store(ref.at[rows, columns], jnp.asarray(values), mask=mask)


def _product(rows: Array, matrix: Array, axis: int, precision: Any) -> Array:
  """`rows @ matrix`, or with its transpose where `axis` is 1."""
  return jax.lax.dot_general(
    rows, matrix, (((1,), (axis,)), ((), ())), precision=precision
  )


def _precision() -> jax.lax.DotAlgorithmPreset | None:
  """How exact products are: as JAX is told.

  Where they must be exact they are so to 1e-6, in three products of the tensor
  cores. Triton's own exact ones spill registers.
  """
  settings: Any = jax.config
  exact = settings.jax_default_matmul_precision in ('float32', 'highest')
  return jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if exact else None
