"""DyRep's localized propagation against its equation, node by node."""

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.layers.local_attention import LocalAttention
from tests.testing import logs

DIM, WIDTH, NEIGHBORS = 3, 4, 3
RNG = np.random.default_rng(0)
NODES = RNG.normal(size=(4, WIDTH)).astype(np.float32)
NEAR = RNG.normal(size=(4, NEIGHBORS, WIDTH)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
MODULE = LocalAttention(DIM)
PARAMS = logs.random_params(MODULE.init, NODES, NEAR, MASK)


def oracle(node, neighbors):
  """What a node hears of its neighbors' states, by DyRep's equations."""
  p = jax.tree.map(lambda w: np.asarray(w, float), PARAMS['params'])
  if not len(neighbors):
    return np.zeros(DIM)
  psi = np.exp(p['log_psi'])
  w = np.concatenate([p['intensity_node'], p['intensity_neighbor']])
  intensity = np.array(
    [
      psi * np.log(1 + np.exp(w @ np.concatenate([node, other]) / psi))
      for other in neighbors
    ]
  )
  share = np.exp(intensity) / np.exp(intensity).sum()
  heard = [
    1
    / (1 + np.exp(-q * (other @ p['Dense_0']['kernel'] + p['Dense_0']['bias'])))
    for q, other in zip(share, neighbors)
  ]
  return np.max(heard, axis=0)


def test_propagation_is_the_equation():
  found = MODULE.apply(PARAMS, NODES, NEAR, MASK)
  expected = [
    oracle(node, near[mask])
    for node, near, mask in zip(NODES.astype(float), NEAR, MASK)
  ]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_masked_is_not_seen_and_no_gradient_is_nan():
  spoiled = np.where(MASK[..., None], NEAR, 1e4).astype(np.float32)
  total = lambda params, near: jnp.sum(
    MODULE.apply(params, NODES, near, MASK) ** 2
  )
  value, grads = jax.value_and_grad(total, (0, 1))(PARAMS, jnp.array(spoiled))
  np.testing.assert_allclose(value, total(PARAMS, NEAR), rtol=1e-6)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert all(np.any(g) for g in jax.tree.leaves(grads[0]))
  np.testing.assert_array_equal(grads[1][~MASK], 0)
