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


def test_a_setting_stands_beside_float32_on_the_same_events():
  users = np.arange(40)

  def run(seed, value, rounded=None):
    about = {
      'seed': seed,
      'memory_mb': 2.0,
      'validation': 0.5,
      'test': np.mean(value),
      'test_rounded': None if rounded is None else np.mean(rounded),
    }
    return precision.Measured(about, users, value, rounded)

  all_right, some = np.ones(40), (users < 30).astype(float)
  first = [run(seed, all_right) for seed in (0, 1)]
  found = [run(0, some, all_right), run(1, all_right, all_right)]
  row = precision.against(found, first)
  assert row['ranked_in_float32']['difference'] == -0.125
  assert row['ranked_in_float32']['p'] < 0.05
  assert row['ranked_rounded']['difference'] == 0

  about = {
    'log': 'log',
    'system': 'tgn',
    'epochs': 2,
    'events': 40,
    'commit': 'abc',
    'settings': {'float32': precision.against(first, first), 'bf16': row},
  }
  *_, plain, line = precision.page({'tgn log': about})
  assert '| 1.0000 ± 0.0000 | - | 2.0 MB | 1.' in plain
  assert line.startswith(
    '| bf16 | 2 | 0.5000 ± 0.0000 | 0.8750 ± 0.1768 (-0.1250, '
  )
