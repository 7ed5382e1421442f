"""Barriers change no value, and XLA leaves them where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels import barriers


def double_and_sum(x, y):
  return 2 * x, jnp.sum(y)


@pytest.mark.parametrize('first', [0.0, -0.0, np.nan, np.inf, -np.inf, 1.5])
def test_a_fusion_barrier_computes_what_stands_behind_it(first):
  args = jnp.array([first, 3.0]), jnp.arange(4.0)
  found = jax.jit(lambda *args: barriers.fusion_barrier(double_and_sum, *args))(
    *args
  )
  jax.tree.map(np.testing.assert_array_equal, found, double_and_sum(*args))


@pytest.mark.parametrize('condition', [True, False])
def test_a_condition_decides_whether_anything_is_computed(condition):
  args = jnp.array([1.0, 3.0]), jnp.arange(4.0)
  found = jax.jit(
    lambda condition, *args: barriers.fusion_barrier(
      double_and_sum, *args, condition=condition
    )
  )(condition, *args)
  expected = double_and_sum(*args)
  if not condition:
    expected = jax.tree.map(jnp.zeros_like, expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf, -1e38])
def test_flags_wait_for_values_and_stay_as_they_are(value):
  flags = jnp.array([True, False])
  found = jax.jit(barriers.after)(flags, jnp.array([value, -np.inf]))
  np.testing.assert_array_equal(found, flags)


def test_a_compiled_program_still_has_the_branch_and_the_comparison():
  x = jnp.ones([4])
  run = lambda x: barriers.fusion_barrier(jnp.cos, x)
  assert ' conditional(' in jax.jit(run).lower(x).compile().as_text()
  run = lambda x: barriers.after(jnp.array([True]), x)
  assert ' compare(' in jax.jit(run).lower(x).compile().as_text()
