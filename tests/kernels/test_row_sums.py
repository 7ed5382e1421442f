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
