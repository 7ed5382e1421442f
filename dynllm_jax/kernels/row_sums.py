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

from dynllm_jax.kernels import binary_search
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


def add_to_rows(table: Array, rows: Array, values: Array) -> jax.Array:
  """`table.at[rows].add(values)`; no gradient passes through.

  Args:
    table: f32[num_rows, ...].
    rows: i32[n], none negative; those from `num_rows` on are left out.
    values: f32[n, ...].

  Returns:
    The table. A row is read and written once, whatever the number of rows.
  """

  def in_order(table: Array, rows: Array, values: Array) -> Array:
    return jnp.asarray(table).at[rows].add(values, mode='drop')

  ways = {'default': in_order}
  if sharded_table.is_one_device():
    ways['cuda'] = add_sums
  arguments = jax.lax.stop_gradient((table, rows, values))
  result: jax.Array = jax.lax.platform_dependent(*arguments, **ways)
  return result


def add_sums(
  table: Array, rows: Array, values: Array, interpret: bool = False
) -> Array:
  """`add_to_rows` by the kernel; arguments are those of `sum_sorted`, too."""
  size, place = len(rows), jnp.arange(len(rows), dtype=jnp.int32)
  ordered = jnp.sort(rows)
  first = binary_search.find(ordered, rows)
  flat = values.reshape(size, math.prod(values.shape[1:]))
  sums = sum_sorted(flat, first, size, interpret)
  # The first of equal rows has their sum; the others lie behind the table,
  # each in a place of its own.
  is_first = binary_search.find(ordered, ordered) == place
  return (
    jnp.asarray(table)
    .at[jnp.where(is_first, ordered, len(table) + place)]
    .add(sums.reshape(values.shape), mode='drop', unique_indices=True)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def sum_in_rows(values: Array, columns: Array, num_columns: int) -> Array:
  """Adds up the values of each row by column.

  Args:
    values: f32[batch, n].
    columns: i32[batch, n], none negative; those from `num_columns` on are left
      out.
    num_columns: of the result.

  Returns:
    f32[batch, num_columns].
  """
  return _sum_in_rows_forward(values, columns, num_columns)[0]


def _sum_in_rows_forward(
  values: Array, columns: Array, num_columns: int
) -> tuple[Array, Array]:
  def in_order(values: Array, columns: Array) -> Array:
    row = jnp.arange(len(values))[:, None]
    zeros = jnp.zeros([len(values), num_columns], values.dtype)
    return zeros.at[row, columns].add(values, mode='drop')

  ways = {'default': in_order}
  if sharded_table.is_one_device():
    ways['cuda'] = functools.partial(compare_and_sum, num_columns=num_columns)
  return jax.lax.platform_dependent(values, columns, **ways), columns


def _sum_in_rows_backward(
  num_columns: int, columns: Array, cotangent: Array
) -> tuple[Array, None]:
  del num_columns
  row = jnp.arange(len(columns))[:, None]
  cotangent = jnp.asarray(cotangent)
  return cotangent.at[row, columns].get(mode='fill', fill_value=0), None


sum_in_rows.defvjp(_sum_in_rows_forward, _sum_in_rows_backward)


def compare_and_sum(values: Array, columns: Array, num_columns: int) -> Array:
  """`sum_in_rows`, each value compared with all of its row: few hundred."""
  same = columns[:, :, None] == columns[:, None, :]
  sums = jnp.sum(jnp.where(same, values[:, None, :], 0.0), axis=-1)
  # Values of one column all set the same sum.
  row = jnp.arange(len(values))[:, None]
  zeros = jnp.zeros([len(values), num_columns], values.dtype)
  return zeros.at[row, columns].set(sums, mode='drop')


@jax.custom_vjp
def read_in_rows(table: Array, columns: Array) -> Array:
  """`jnp.take_along_axis(table, columns, axis=1)`, its gradient in order.

  Args:
    table: f32[batch, num_columns].
    columns: i32[batch, n], each below `num_columns`, none negative.

  Returns:
    f32[batch, n].
  """
  return jnp.take_along_axis(table, columns, axis=1)


def _read_in_rows_forward(
  table: Array, columns: Array
) -> tuple[Array, tuple[Array, Array]]:
  # Of the table only its size is read again.
  return read_in_rows(table, columns), (columns, table[:0])


def _read_in_rows_backward(
  residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, None]:
  columns, nothing = residuals
  return sum_in_rows(cotangent, columns, nothing.shape[1]), None


read_in_rows.defvjp(_read_in_rows_forward, _read_in_rows_backward)


@jax.custom_vjp
def read_columns(table: Array, columns: Array) -> Array:
  """`table[:, columns]`, whose gradient is the same in every run.

  A CPU goes row by row, to read as to add up. One column after the other, with
  rows of 4 KiB, all that is read falls into one set of the cache: of
  f32[960, 1024], 1,024 columns took 3.7 ms instead of .5, and their gradient 16
  ms instead of 2.

  Args:
    table: f32[batch, num_columns].
    columns: i32[n], each below `num_columns`, none negative.

  Returns:
    f32[batch, n].
  """
  ways = {'default': lambda table, columns: table[:, columns]}
  if sharded_table.is_one_device():
    ways['cpu'] = lambda table, columns: jnp.take_along_axis(
      table, _in_every_row(table, columns), axis=1
    )
  result: jax.Array = jax.lax.platform_dependent(table, columns, **ways)
  return result


def _read_columns_forward(
  table: Array, columns: Array
) -> tuple[Array, tuple[Array, Array]]:
  # Of the table only its size is read again.
  return read_columns(table, columns), (columns, table[:0])


def _read_columns_backward(
  residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, None]:
  columns, nothing = residuals
  num_columns = nothing.shape[1]

  def in_order(cotangent: Array, columns: Array) -> Array:
    zeros = jnp.zeros([len(cotangent), num_columns], cotangent.dtype)
    return zeros.at[:, columns].add(cotangent)

  ways = {'default': in_order}
  if sharded_table.is_one_device():
    ways['cpu'] = lambda cotangent, columns: sum_in_rows(
      cotangent, _in_every_row(cotangent, columns), num_columns
    )
    ways['cuda'] = lambda cotangent, columns: (
      sum_sorted(cotangent.T, columns, num_columns).T
    )
  return jax.lax.platform_dependent(cotangent, columns, **ways), None


read_columns.defvjp(_read_columns_forward, _read_columns_backward)


def _in_every_row(table: Array, columns: Array) -> Array:
  return jnp.broadcast_to(columns, (len(table), len(columns)))


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
