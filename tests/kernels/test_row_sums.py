"""Sums of rows by the kernel, interpreted, and gradients of reading rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels import row_sums


def numbers(size, num_rows, width):
  """Row numbers, a few past the end, and whole values: their sums are exact."""
  rng = np.random.default_rng(size)
  rows = rng.integers(0, num_rows + 2, size).astype(np.int32)
  return rows, rng.integers(-9, 9, (size, width)).astype(np.float32)


def added(rows, values, num_rows):
  sums = np.zeros((num_rows, values.shape[1]))
  for row, value in zip(rows, values):
    if row < num_rows:
      sums[row] += value
  return sums


# One row with more readers than a block; widths that are no power of two, and
# wider than a program takes.
@pytest.mark.parametrize('shape', [(100, 1, 5), (70, 40, 130), (33, 3, 1)])
def test_the_kernel_adds_up_what_belongs_together(shape):
  size, num_rows, width = shape
  rows, values = numbers(size, num_rows, width)
  expected = added(rows, values, num_rows)
  found = row_sums.sum_sorted(values, rows, num_rows, interpret=True)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(
    row_sums.sum_rows(values, rows, num_rows), expected
  )


def test_nothing_to_add():
  rows = jnp.zeros([0], jnp.int32)
  assert not np.any(row_sums.sum_sorted(jnp.zeros([0, 3]), rows, 4))


def test_gradients_are_those_of_plain_reads():
  table = jax.random.normal(jax.random.key(0), (4, 2, 3))
  rows = jnp.array([[3, 0, 3], [3, 1, 0]])
  weights = jax.random.normal(jax.random.key(1), (2, 3, 2, 3))
  read = lambda table: jnp.sum(weights * row_sums.read_rows(table, rows) ** 2)
  plain = lambda table: jnp.sum(weights * table[rows] ** 2)
  np.testing.assert_allclose(
    jax.grad(read)(table), jax.grad(plain)(table), rtol=1e-6
  )

  sums = lambda x: jnp.sum(jnp.sin(row_sums.sum_rows(x, rows[0], 3)))
  values = weights[0]
  expected = np.zeros((3, 2, 3))
  expected[1] = np.cos(values[1])  # row 0; the others are past the end
  np.testing.assert_allclose(jax.grad(sums)(values), expected, rtol=1e-6)


def test_whole_numbers_are_read_plainly():
  table = jnp.arange(5)
  np.testing.assert_array_equal(
    row_sums.read_rows(table, jnp.array([4, 0])), [4, 0]
  )


@pytest.mark.parametrize('width', [(), (3,)])
def test_rows_of_a_table_get_their_sums(width):
  rows, values = numbers(60, 9, 3)
  rows[rows == 4] = np.iinfo(np.int32).max  # left out; row 4 gets nothing
  values = values if width else values[:, 0]
  table = np.arange(9 * 3, dtype=np.float32).reshape(9, 3)
  table = table if width else table[:, 0]
  expected = table.copy()
  np.add.at(expected, rows[rows < 9], values[rows < 9])

  found = row_sums.add_sums(table, rows, values, interpret=True)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(
    row_sums.add_to_rows(table, rows, values), expected
  )


def test_values_of_a_row_are_added_up_by_column():
  rng = np.random.default_rng(0)
  columns = rng.integers(0, 7, (5, 12)).astype(np.int32)  # 5 and 6: left out
  values = rng.integers(-9, 9, (5, 12)).astype(np.float32)
  expected = np.zeros((5, 5), np.float32)
  for row, of_row in enumerate(columns):
    for column, value in zip(of_row, values[row]):
      if column < 5:
        expected[row, column] += value

  found = row_sums.compare_and_sum(values, columns, 5)
  np.testing.assert_array_equal(found, expected)
  add = lambda values: row_sums.sum_in_rows(values, columns, 5)
  np.testing.assert_array_equal(add(values), expected)

  gradient = jax.grad(lambda x: jnp.sum(jnp.sin(add(x))))(values)
  slopes = np.pad(np.cos(expected), ((0, 0), (0, 2)))
  np.testing.assert_allclose(
    gradient, np.take_along_axis(slopes, columns, 1), rtol=1e-6
  )


def test_gradients_of_columns_are_those_of_plain_reads():
  table = jax.random.normal(jax.random.key(0), (4, 5))
  columns = jnp.array([3, 0, 3, 4])
  read = lambda read: lambda x: jnp.sum(jnp.sin(read(x)))
  found = jax.grad(read(lambda x: row_sums.read_columns(x, columns)))(table)
  plain = jax.grad(read(lambda x: x[:, columns]))(table)
  np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_gradients_of_places_in_rows_are_those_of_plain_reads():
  table = jax.random.normal(jax.random.key(0), (2, 5))
  columns = jnp.array([[3, 0, 3], [1, 1, 4]])
  read = lambda read: lambda x: jnp.sum(jnp.sin(read(x, columns)))
  plain = lambda x, columns: jnp.take_along_axis(x, columns, axis=1)
  np.testing.assert_allclose(
    jax.grad(read(row_sums.read_in_rows))(table),
    jax.grad(read(plain))(table),
    rtol=1e-6,
  )
