"""The diagonal Kalman filter against the textbook's, with whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.layers import kalman

DIM = 3
RNG = np.random.default_rng(0)
PARAMS = {
  'decay': np.array([0.01, 0.1, 1.0]),
  'variance': np.array([0.5, 1.0, 2.0]),
  'noise': np.array(0.3),
  'prior': RNG.normal(size=DIM),
}


def states(count):
  return np.concatenate(
    [RNG.normal(size=(count, DIM)), RNG.uniform(0.1, 2.0, (count, DIM))], -1
  )


def test_prediction_is_the_linear_system():
  before, days = states(4), np.array([0.0, 1.0, 30.0, 1e4])
  after = kalman.predict(PARAMS, before, days)
  for row, old, gap in zip(after, before, days):
    a = np.diag(np.exp(-PARAMS['decay'] * gap))
    q = np.diag(PARAMS['variance']) @ (np.eye(DIM) - a @ a)
    np.testing.assert_allclose(row[:DIM], a @ old[:DIM], atol=1e-5)
    np.testing.assert_allclose(
      row[DIM:], np.diag(a @ np.diag(old[DIM:]) @ a.T + q), rtol=1e-5
    )


def test_correction_is_the_diagonal_of_the_whole_filter():
  before, factors = states(5), RNG.normal(size=(5, DIM))
  inputs = np.concatenate([factors, np.zeros((5, 1))], axis=-1)
  after = kalman.kalman_step(PARAMS, before, inputs)
  for row, old, v in zip(after, before, factors):
    mean, covariance = old[:DIM], np.diag(old[DIM:])
    gain = covariance @ v / (v @ covariance @ v + PARAMS['noise'])
    surprise = 1 - v @ (mean + PARAMS['prior'])
    np.testing.assert_allclose(row[:DIM], mean + gain * surprise, atol=1e-5)
    np.testing.assert_allclose(
      row[DIM:],
      np.diag((np.eye(DIM) - np.outer(gain, v)) @ covariance),
      rtol=1e-4,
    )


def test_variance_stays_above_zero_over_many_events():
  state = jnp.asarray(states(1), jnp.float32)
  inputs = jnp.asarray(RNG.normal(size=(200, 1, DIM + 1)) ** 2, jnp.float32)
  end, _ = jax.lax.scan(
    lambda s, x: (kalman.kalman_step(PARAMS, s, 10 * x), None), state, inputs
  )
  assert np.all(np.asarray(end)[:, DIM:] > 0)
  assert np.all(np.isfinite(end))


def test_the_learned_values_start_where_they_are_said_to():
  weights = kalman.KalmanFilter(DIM).init_with_output(
    jax.random.key(0), method='weights'
  )[0]
  for name, value in (('decay', 0.01), ('variance', 1.0), ('noise', 1.0)):
    np.testing.assert_allclose(weights[name], value, rtol=1e-6)
  assert weights['prior'].shape == (DIM,)
