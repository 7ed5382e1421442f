"""Time encoding `phi` (SPEC 3.1)."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.types import Array

SHORTEST_DAYS = 1 / 24
LONGEST_DAYS = 3_652.5

# Minimax fits on |r| <= 1/2, in ascending powers of r^2; the errors are 8e-7
# for the cosine and 1e-7 for the sine. A test compares them with numpy.
_COS = (
  0.99999922,
  -19.73898252,
  64.92872662,
  -85.27239702,
  58.79403874,
  -21.07678217,
)
_SIN = (
  6.28318282,
  -41.3414214,
  81.59618388,
  -76.58010057,
  41.20539505,
  -12.27126261,
)


def _polynomial(coefficients, x):
  total = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    total = total * x + c
  return total


def cos_sin_turns(turns: Array) -> tuple[Array, Array]:
  """`cos(2 pi turns)`, `sin(2 pi turns)`, by range reduction and polynomials.

  On CPU XLA's own cosine costs some ten times as much; these are accurate to
  1e-6 of the given float32 argument.
  """
  r = turns - jnp.round(turns)
  square = r * r
  return _polynomial(_COS, square), r * _polynomial(_SIN, square)


@jax.custom_vjp
def waves(days: Array, turns_per_day: Array) -> Array:
  """`phi` of SPEC 3.1 from frequencies in turns.

  Args:
    days: f32[...].
    turns_per_day: f32[k].

  Returns:
    f32[..., 2k].
  """
  size = len(turns_per_day)
  pairs = [
    part * size**-0.5 for part in cos_sin_turns(days[..., None] * turns_per_day)
  ]
  return jnp.stack(pairs, axis=-1).reshape(*days.shape, 2 * size)


def _waves_backward(residuals, cotangent):
  """The derivative of each of a pair is the other; the sum is a product."""
  days, turns_per_day, codes = residuals
  pairs = (*turns_per_day.shape, 2)
  cos, sin = jnp.moveaxis(codes.reshape(-1, *pairs), -1, 0)
  of_cos, of_sin = jnp.moveaxis(cotangent.reshape(-1, *pairs), -1, 0)
  grad = 2 * jnp.pi * (of_sin * cos - of_cos * sin)
  return (grad @ turns_per_day).reshape(days.shape), days.reshape(-1) @ grad


def _waves_forward(days, turns_per_day):
  codes = waves(days, turns_per_day)
  return codes, (days, turns_per_day, codes)


waves.defvjp(_waves_forward, _waves_backward)


class TimeEncoding(nn.Module):
  """`phi(x) = sqrt(1/k) [cos w_1 x, sin w_1 x, ..., cos w_k x, sin w_k x]`.

  Attributes:
    dim: 2k, even.
  """

  dim: int

  def setup(self):
    periods = np.geomspace(SHORTEST_DAYS, LONGEST_DAYS, self.dim // 2)
    # Learned as logarithms: a step of Adam is as long for every weight, and
    # one that suits hours would overthrow a period of years. The name tells
    # the optimizer to clip this gradient on its own.
    self.log_frequencies = self.param(
      'log_time_frequencies',
      lambda _: jnp.asarray(np.log(2 * np.pi / periods), jnp.float32),
    )

  def __call__(self, days: Array) -> Array:
    """Encodes f32[...] days as f32[..., dim]."""
    return waves(days, jnp.exp(self.log_frequencies) / (2 * jnp.pi))
