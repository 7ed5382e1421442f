"""Tests of the products that experiments/precision_study.py rounds."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import precision_study as precision


def draw(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_factors_are_rounded_and_products_are_not():
  left, right = draw(0, (8, 32)), draw(1, (32, 4))
  product = lambda a, b: jax.jit(lambda a, b: a @ b)(a, b)
  half = lambda x: np.asarray(x.astype(jnp.bfloat16), np.float64)
  with jax.default_matmul_precision('default'):
    with precision.rounded(7) as count:
      found = product(left, right)
      gradient = jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(a @ right))))(left)
    plain = product(left, right)

  # One product forward, and one forward and one backward.
  assert count == [3]
  np.testing.assert_allclose(found, half(left) @ half(right), rtol=2e-5)
  exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64)
  np.testing.assert_allclose(plain, exact, rtol=2e-5)
  assert np.max(np.abs(found - exact)) > 1e-3

  slope = jnp.cos(jnp.asarray(half(left) @ half(right), jnp.float32))
  np.testing.assert_allclose(
    gradient, half(slope) @ half(right).T, rtol=1e-4, atol=1e-5
  )


def test_products_that_ask_for_all_bits_are_left():
  left, right = draw(0, (8, 32)), draw(1, (32, 4))
  with jax.default_matmul_precision('highest'):
    with precision.rounded(7) as count:
      jax.jit(lambda a, b: a @ b)(left, right)
  assert count == [0]


def test_the_page_has_means_over_seeds():
  run = lambda seed, value: {
    'setting': 'bf16',
    'seed': seed,
    'ranked_in_float32': {'validation': value, 'test': value + 0.1},
  }
  lines = precision.page(
    {
      'tgn log': {
        'log': 'log',
        'system': 'tgn',
        'epochs': 2,
        'sample': 0,
        'commit': 'abc',
        'runs': [run(0, 0.1), run(1, 0.2)],
      }
    }
  )
  assert '| bf16 | 2 | 0.1500 | 0.2500 | - | - |' in lines
