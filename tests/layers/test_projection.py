"""Projections of memory against the formulas of SPEC 3.4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers.mlp import normalize
from dynllm_jax.layers.projection import IntervalProjection
from dynllm_jax.layers.projection import LinearProjection

DIM = 5
RNG = np.random.default_rng(0)
STATE = RNG.normal(size=(4, DIM)).astype(np.float32)
NAMES = ('interval', 'weight_early', 'weight_late', 'bias_early', 'bias_late')


def layer_norm(x):
  x = np.asarray(x, float)
  centered = x - x.mean(-1, keepdims=True)
  return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)


def interval_params():
  return {name: RNG.normal(size=DIM).astype(np.float32) / 2 for name in NAMES}


def expected_interval(state, a):
  return np.sqrt(np.pi / (2 * np.exp(np.asarray(state, float) @ a)))


def test_normalize_is_layer_norm_without_scale_or_bias():
  x = RNG.normal(3.0, 2.0, (2, 3, DIM)).astype(np.float32)
  np.testing.assert_allclose(normalize(x), layer_norm(x), atol=1e-5)
  assert np.all(
    np.isfinite(
      jax.grad(lambda x: jnp.sum(normalize(x) ** 3))(jnp.ones([2, DIM]))
    )
  )


def test_interval_has_a_drift_on_each_side_of_the_expected_return():
  params = interval_params()
  interval = expected_interval(STATE, params['interval'])
  sides = set()
  for factor in (0.0, 0.5, 0.99, 1.01, 3.0):
    elapsed = (interval * factor).astype(np.float32)
    found = IntervalProjection().apply({'params': params}, STATE, elapsed)
    side = 'early' if factor < 1 else 'late'
    sides.add(side)
    drift = (elapsed - interval)[:, None] * params[f'weight_{side}'] + params[
      f'bias_{side}'
    ]
    np.testing.assert_allclose(
      found, layer_norm(STATE * (1 + drift)), atol=2e-5
    )
  assert sides == {'early', 'late'}


def test_the_logarithm_takes_the_place_of_the_elapsed_time():
  params = {'params': interval_params()}
  elapsed = np.array([0.0, 0.5, 2.0, 30.0], np.float32)
  np.testing.assert_allclose(
    IntervalProjection(log=True).apply(params, STATE, elapsed),
    IntervalProjection().apply(params, STATE, np.log1p(elapsed)),
    atol=1e-5,
  )


def test_exactly_the_expected_return_is_late():
  params = interval_params()
  params['interval'] = np.zeros(DIM, np.float32)
  interval = jnp.sqrt(jnp.pi / 2)  # sqrt(pi / (2 exp 0))
  found = IntervalProjection().apply(
    {'params': params}, STATE, jnp.full([4], interval)
  )
  np.testing.assert_allclose(
    found, layer_norm(STATE * (1 + params['bias_late'])), atol=1e-5
  )


def test_linear_is_jodie():
  weight = RNG.normal(size=DIM).astype(np.float32)
  elapsed = np.array([0.0, 0.5, 2.0, 30.0], np.float32)
  found = LinearProjection().apply(
    {'params': {'weight': weight}}, STATE, elapsed
  )
  np.testing.assert_allclose(
    found, layer_norm(STATE * (1 + elapsed[:, None] * weight)), atol=1e-5
  )


@pytest.mark.parametrize('module', [IntervalProjection(), LinearProjection()])
def test_the_first_projection_is_no_drift(module):
  elapsed = jnp.array([0.0, 1.0, 5.0, 100.0])
  params = module.init(jax.random.key(0), STATE, elapsed)
  np.testing.assert_allclose(
    module.apply(params, STATE, elapsed), layer_norm(STATE), atol=1e-5
  )


def test_interval_gradient_is_finite_for_any_state():
  params = interval_params()
  for state in (STATE, STATE * 1e3, STATE * 0):
    grads = jax.grad(
      lambda params, state: jnp.sum(
        IntervalProjection().apply(
          {'params': params}, state, jnp.array([0.0, 1.0, 9.0, 1e3])
        )
        ** 3
      ),
      (0, 1),
    )(params, jnp.asarray(state))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_the_expected_return_is_learned():
  params = interval_params()
  grads = jax.grad(
    lambda params: jnp.sum(
      IntervalProjection().apply(
        {'params': params}, STATE, jnp.array([0.1, 1.0, 2.0, 9.0])
      )
      ** 3
    )
  )(params)
  assert all(np.any(grads[name]) for name in NAMES)
