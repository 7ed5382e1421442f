"""Selection by counting against selection by `lax.top_k`, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels import counted_top_r


@pytest.mark.parametrize('order', ['score', 'index', 'mask'])
@pytest.mark.parametrize(
  'shape, top_r', [((5, 128), 80), ((2, 3, 7), 7), ((4, 1), 1)]
)
def test_counting_selects_what_top_k_does(shape, top_r, order):
  values = np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 2.0, np.inf], np.float32)
  rng = np.random.default_rng(0)
  gated = rng.normal(size=shape).astype(np.float32)

  @jax.jit
  def both(scores):
    found = []
    for select in (
      counted_top_r.select_by_counting,
      counted_top_r.select_by_sorting,
    ):
      out, pullback = jax.vjp(
        functools.partial(select, scores=scores, top_r=top_r, order=order),
        gated,
      )
      found.append((out, pullback(jnp.cos(out))[0]))
    return found

  for scores in (
    rng.normal(size=shape).astype(np.float32),
    rng.choice(values, shape),
  ):
    counted, sorted_ = both(scores)
    np.testing.assert_array_equal(counted[0], sorted_[0])
    np.testing.assert_array_equal(counted[1], sorted_[1])
