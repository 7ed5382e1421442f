"""Sums of rows that belong together, in an order that never changes.

The gradient of reading rows of a table adds up, for every row, what its readers
send back. Added to the table as it comes, on a GPU the order of a sum and with
it the last bits differ from run to run. There the readers are sorted by row
instead (XLA sorts once for all that read by the same ids), and a program of the
GPU for each row of the table adds up its own. A CPU adds in order anyway.
"""

import functools
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array

_READERS = 32  # added up at once
_COLUMNS = 128  # of a program at most


def read_rows(table: Array, rows: Array) -> Array:
  """`table[rows]`, whose gradient is the same to the last bit in every run.

  Args:
    table: [num_rows, ...]; one without a gradient, as of integers, is read
      plainly.
    rows: i32[...], each below `num_rows`, none negative.

  Returns:
    [*rows.shape, ...].
  """
  if not jnp.issubdtype(table.dtype, jnp.floating):
    return table[rows]
  return _read(table.shape, table, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(shape: tuple[int, ...], table: Array, rows: Array) -> Array:
  del shape
  return table[rows]


def _read_forward(
  shape: tuple[int, ...], table: Array, rows: Array
) -> tuple[Array, Array]:
  del shape
  return table[rows], rows


def _read_backward(
  shape: tuple[int, ...], rows: Array, cotangent: Array
) -> tuple[Array, None]:
  values = cotangent.reshape(rows.size, *shape[1:])
  return sum_rows(values, rows.reshape(-1), shape[0]), None


_read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_rows(values: Array, rows: Array, num_rows: int) -> Array:
  """Adds up the values of each row.

  Args:
    values: f32[n, ...].
    rows: i32[n], none negative; those from `num_rows` on are left out.
    num_rows: of the result.

  Returns:
    f32[num_rows, ...].
  """
  return _sum_forward(values, rows, num_rows)[0]


def _sum_forward(
  values: Array, rows: Array, num_rows: int
) -> tuple[Array, Array]:
  shape = (num_rows, *values.shape[1:])
  flat = values.reshape(len(values), math.prod(values.shape[1:]))

  def in_order(values: Array, rows: Array) -> Array:
    zeros = jnp.zeros([num_rows, values.shape[1]], values.dtype)
    return zeros.at[rows].add(values, mode='drop')

  # Over several devices each adds up what it has of the batch, and XLA adds
  # up the tables; a kernel would need all values on every device.
  ways = {'default': in_order}
  if sharded_table.is_one_device():
    ways['cuda'] = lambda values, rows: sum_sorted(values, rows, num_rows)
  sums = jax.lax.platform_dependent(flat, rows, **ways)
  return sums.reshape(shape), rows


def _sum_backward(
  num_rows: int, rows: Array, cotangent: Array
) -> tuple[Array, None]:
  del num_rows
  return jnp.asarray(cotangent).at[rows].get(mode='fill', fill_value=0), None


sum_rows.defvjp(_sum_forward, _sum_backward)


def sum_sorted(
  values: Array, rows: Array, num_rows: int, interpret: bool = False
) -> Array:
  """`sum_rows` of f32[n, width], by a kernel.

  Args:
    values: f32[n, width].
    rows: i32[n].
    num_rows: of the result.
    interpret: whether to run the kernel on any device, slowly.

  Returns:
    f32[num_rows, width].
  """
  width = values.shape[1]
  if not (len(values) and num_rows and width):
    return jnp.zeros([num_rows, width], values.dtype)

  # Readers by row, those of one row in their order; where each row begins.
  readers = jnp.pad(jnp.argsort(rows, stable=True), (0, _READERS))
  counts = jnp.zeros([num_rows], jnp.int32).at[rows].add(1, mode='drop')
  starts = jnp.pad(jnp.cumsum(counts), (1, 0))
  columns = min(_COLUMNS, pl.next_power_of_2(width))
  return pl.pallas_call(
    _sum_row,
    grid=(num_rows, -(-width // columns)),
    out_shape=jax.ShapeDtypeStruct((num_rows, width), values.dtype),
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    interpret=interpret,
  )(starts.astype(jnp.int32), readers.astype(jnp.int32), values)


def _sum_row(starts: Any, readers: Any, values: Any, sums: Any) -> None:
  """Some columns of a row of the result; all arguments are references."""
  row, width = pl.program_id(0), values.shape[1]
  size = min(_COLUMNS, pl.next_power_of_2(width))
  columns = pl.program_id(1) * size + jnp.arange(size)
  first, end = starts[row], starts[row + 1]

  def add(block: Array, total: Array) -> Array:
    begin = first + block * _READERS
    is_there = begin + jnp.arange(_READERS) < end
    shape = (_READERS, size)
    at, column, mask = (
      jnp.broadcast_to(x, shape)
      for x in (
        readers[pl.ds(begin, _READERS)][:, None],
        jnp.minimum(columns, width - 1)[None],
        is_there[:, None],
      )
    )
    return total + jnp.sum(jnp.where(mask, values[at, column], 0.0), axis=0)

  blocks = (end - first + _READERS - 1) // _READERS
  total = jax.lax.fori_loop(0, blocks, add, jnp.zeros([size], jnp.float32))
  triton.store(
    sums.at[jnp.full([size], row), columns],
    total,
    mask=columns < width,
  )
