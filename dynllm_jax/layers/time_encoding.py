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
_COS = (0.99999922, -19.73898252, 64.92872662, -85.27239702, 58.79403874,
        -21.07678217)
_SIN = (6.28318282, -41.3414214, 81.59618388, -76.58010057, 41.20539505,
        -12.27126261)


def _polynomial(coefficients, x):
  total = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    total = total * x + c
  return total


def cos_turns(turns: Array) -> Array:
  """`cos(2 pi turns)` by range reduction and a polynomial.

  On CPU XLA's own cosine costs some ten times as much; this one is accurate to
  1e-6 of the given float32 argument.
  """
  r = turns - jnp.round(turns)
  return _polynomial(_COS, r * r)


def sin_turns(turns: Array) -> Array:
  """`sin(2 pi turns)`, as `cos_turns`."""
  r = turns - jnp.round(turns)
  return r * _polynomial(_SIN, r * r)


@jax.custom_vjp
def waves(days: Array, turns_per_day: Array) -> Array:
  """Cosines and sines in turn.

  Args:
    days: f32[...].
    turns_per_day: f32[dim], that of a sine equal to its cosine's before it.

  Returns:
    f32[..., dim].
  """
  return cos_turns(_phases(days, turns_per_day))


def _phases(days, turns_per_day):
  # sin x = cos(x - a quarter turn).
  quarter = jnp.tile(jnp.array([0.0, 0.25]), len(turns_per_day) // 2)
  return days[..., None] * turns_per_day - quarter


def _waves_backward(residuals, cotangent):
  """The sum over days is a product, which XLA reduces faster on CPU."""
  days, turns_per_day = residuals
  grad = -2 * jnp.pi * cotangent * sin_turns(_phases(days, turns_per_day))
  rows = grad.reshape(-1, len(turns_per_day))
  return grad @ turns_per_day, days.reshape(-1) @ rows


waves.defvjp(lambda *args: (waves(*args), args), _waves_backward)


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
        lambda _: jnp.asarray(np.log(2 * np.pi / periods), jnp.float32))

  def __call__(self, days: Array) -> Array:
    """Encodes f32[...] days as f32[..., dim]."""
    turns_per_day = jnp.exp(self.log_frequencies) / (2 * jnp.pi)
    return waves(days, jnp.repeat(turns_per_day, 2)) * (2 / self.dim) ** 0.5
