"""Projection of a stale memory to the time of a query (SPEC 3.4)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.layers.mlp import normalize
from dynllm_jax.types import Array

PROJECTIONS = ('interval', 'log_interval', 'linear', 'none')


class IntervalProjection(nn.Module):
  """DynShare's projector around a learned expected return interval.

  `E(h) = sqrt(pi / (2 exp(h . a)))`, and
  `h^p = h (1 + W_early (dt - E) + b_early)` where `dt < E`, with `W_late` and
  `b_late` otherwise; the result is normalized.

  Attributes:
    log: whether `log(1 + dt)` takes the place of dt, which is twenty times the
      mean return where a user has been away for long.
  """

  log: bool = False

  @nn.compact
  def __call__(self, state: Array, elapsed: Array) -> Array:
    """Projects.

    Args:
      state: f32[batch, d], h.
      elapsed: f32[batch], dt, time since the state was written over the mean
        return time.

    Returns:
      f32[batch, d].
    """
    if self.log:
      elapsed = jnp.log1p(elapsed)
    dim = state.shape[-1]
    small = nn.initializers.normal(dim**-0.5 / 10)
    rate = state @ self.param('interval', small, (dim,))
    # An exponent past this range makes E useless and its gradient infinite.
    expected = jnp.sqrt(jnp.pi / (2 * jnp.exp(jnp.clip(rate, -20.0, 20.0))))
    late = (elapsed - expected)[:, None]
    zeros = nn.initializers.zeros_init()
    weight, bias = (
      jnp.where(
        late < 0,
        self.param(f'{name}_early', zeros, (dim,)),
        self.param(f'{name}_late', zeros, (dim,)),
      )
      for name in ('weight', 'bias')
    )
    return normalize(state * (1 + weight * late + bias))


class LinearProjection(nn.Module):
  """JODIE's projector, `h^p = h (1 + dt w)`, normalized."""

  @nn.compact
  def __call__(self, state: Array, elapsed: Array) -> Array:
    """Projects f32[batch, d] states over f32[batch] elapsed times.

    Args and result as in `IntervalProjection`.
    """
    weight = self.param(
      'weight', nn.initializers.zeros_init(), (state.shape[-1],)
    )
    return normalize(state * (1 + elapsed[:, None] * weight))
