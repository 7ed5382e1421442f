"""A Kalman filter of user factors, with diagonal covariances (DMF)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.types import Array

KalmanParams = dict[str, Array]  # of `KalmanFilter.weights`


def predict(params: KalmanParams, state: Array, days: Array) -> Array:
  """Carries a state forward in time, `x' = A x + w` with `A = exp(-k days)`.

  The variance of `w` is `(1 - A^2)` times the stationary variance. Without
  events a state's variance returns to the stationary one, and its mean to zero.

  Args:
    params: of `KalmanFilter.weights`.
    state: f32[..., 2 dim], mean and variance of the factors.
    days: f32[...].

  Returns:
    f32[..., 2 dim].
  """
  mean, variance = jnp.split(state, 2, axis=-1)
  kept = jnp.exp(-params['decay'] * days[..., None])
  stationary = params['variance']
  return jnp.concatenate(
    [kept * mean, stationary + kept**2 * (variance - stationary)], axis=-1
  )


def kalman_step(params: KalmanParams, state: Array, inputs: Array) -> Array:
  """Takes in one event: predicts, then corrects towards a rating of 1.

  With the item's factors `v` and the prediction's mean `m` and variance `P`,
  `K = P v / (v P v + noise)`, `m' = m + K (1 - v (m + prior))` and
  `P' = (1 - K v) P`, of which the diagonal is kept.

  Args:
    params: of `KalmanFilter.weights`.
    state: f32[rows, 2 dim]; means are deviations from the prior.
    inputs: f32[rows, dim + 1], the item's factors and the days since the
      state was written.

  Returns:
    f32[rows, 2 dim].
  """
  factors, days = inputs[:, :-1], inputs[:, -1]
  mean, variance = jnp.split(predict(params, state, days), 2, axis=-1)
  spread = variance * factors
  gain = spread / (
    jnp.sum(spread * factors, axis=-1, keepdims=True) + params['noise']
  )
  expected = jnp.sum(factors * (mean + params['prior']), axis=-1, keepdims=True)
  return jnp.concatenate(
    [mean + gain * (1 - expected), (1 - gain * factors) * variance], axis=-1
  )


class KalmanFilter(nn.Module):
  """The learned parameters of the filter.

  Attributes:
    dim: number of factors.
  """

  dim: int

  @nn.compact
  def weights(self) -> KalmanParams:
    """Decay per day, stationary variance, noise and prior mean.

    Returns:
      `decay`, `variance`, `prior` f32[dim] and `noise` f32[], all but the
      prior above 0.
    """

    def positive(name: str, start: float, shape: tuple[int, ...]) -> Array:
      raw = self.param(
        f'log_{name}', nn.initializers.constant(jnp.log(start)), shape
      )
      return jnp.exp(raw)

    shape = (self.dim,)
    return {
      'decay': positive('decay', 0.01, shape),
      'variance': positive('variance', 1.0, shape),
      'noise': positive('noise', 1.0, ()),
      'prior': self.param('prior', nn.initializers.normal(1.0), shape),
    }
