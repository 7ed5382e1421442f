"""Attention of few queries, and its gradient, against autodiff of einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels.few_query_attention import attend
from dynllm_jax.kernels.few_query_attention import masked_softmax
from dynllm_jax.kernels.time_codes import TimeCodes

BATCH, HEADS = 5, 2


def plain(queries, keys, mask, scale):
  logits = sum(jnp.einsum('bhd,bnd->bhn', q, k) for q, k in zip(queries, keys))
  weights = scale * masked_softmax(logits, mask[:, None])
  return [jnp.einsum('bhn,bnd->bhd', weights, k) for k in keys]


@pytest.mark.parametrize('waves', [3, 16])
def test_codes_that_are_never_keys_are_as_good_as_keys(waves):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  queries = [normal(BATCH, HEADS, 5), normal(BATCH, HEADS, 2 * waves)]
  keys = normal(BATCH, 6, 5)
  days, turns = jnp.abs(normal(BATCH, 6)), jnp.abs(normal(waves))
  mask = rng.random((BATCH, 6)) < 0.7
  scale = jnp.asarray(rng.integers(0, 3, (BATCH, HEADS, 6)), jnp.float32)

  def by_formula(turns):
    phase = 2 * jnp.pi * days[..., None] * turns
    pairs = jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=-1)
    return pairs.reshape(BATCH, 6, -1) / jnp.sqrt(waves)

  def run(function, codes):
    means, pullback = jax.vjp(
      lambda q, keys, turns: function(
        q, [keys, codes(turns)], jnp.asarray(mask), scale
      ),
      queries,
      keys,
      turns,
    )
    return means, pullback(jax.tree.map(jnp.cos, means))

  found = jax.jit(lambda: run(attend, lambda turns: TimeCodes(days, turns)))()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    run(plain, by_formula),
  )


@pytest.mark.slow
@pytest.mark.parametrize('num_keys', [1, 3, 7, 130])
@pytest.mark.parametrize('dims', [(32, 48), (5,), (16, 3)])
def test_means_and_gradients_are_those_of_einsum(num_keys, dims):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  queries = [normal(BATCH, HEADS, dim) for dim in dims]
  keys = [normal(BATCH, num_keys, dim) for dim in dims]
  mask = rng.random((BATCH, num_keys)) < 0.7
  mask[0] = False
  scale = jnp.asarray(rng.integers(0, 3, (BATCH, HEADS, num_keys)), jnp.float32)

  def run(function):
    means, pullback = jax.vjp(
      lambda q, k: function(q, k, jnp.asarray(mask), scale), queries, keys
    )
    return means, pullback(jax.tree.map(jnp.cos, means))

  found, expected = jax.jit(lambda: run(attend))(), run(plain)
  assert not any(np.any(part[0]) for part in found[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    expected,
  )
