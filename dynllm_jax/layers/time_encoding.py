"""Time encoding `phi` (SPEC 3.1)."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels import platforms
from dynllm_jax.kernels.polynomial_cosine import cos_sin_turns
from dynllm_jax.kernels.polynomial_cosine import cos_turns
from dynllm_jax.types import Array

SHORTEST_DAYS = 1 / 24
LONGEST_DAYS = 3_652.5


@jax.custom_vjp
def waves(days: Array, turns_per_day: Array) -> Array:
  """`phi` of SPEC 3.1, from frequencies in turns a day.

  Args:
    days: f32[...].
    turns_per_day: f32[k].

  Returns:
    f32[..., 2k].
  """
  codes: Array = platforms.on_cpu(
    _waves_in_pairs, _waves_by_column, days, turns_per_day
  )
  return codes


def _waves_in_pairs(days: Array, turns_per_day: Array) -> Array:
  """Both of a pair from one angle, then interleaved."""
  size = len(turns_per_day)
  pairs = [
    part * size**-0.5 for part in cos_sin_turns(days[..., None] * turns_per_day)
  ]
  return jnp.stack(pairs, axis=-1).reshape(*days.shape, 2 * size)


def _waves_by_column(days: Array, turns_per_day: Array) -> Array:
  """Each column by itself: a pair would be padded to a TPU's 128 lanes."""
  return _columns(days, turns_per_day, behind=0.0)


def _columns(days: Array, turns_per_day: Array, behind: float) -> Array:
  """`sqrt(1/k) cos(2 pi (turns - behind))`; a quarter less in odd columns."""
  size = len(turns_per_day)
  shift = behind + jnp.tile(jnp.array([0.0, 0.25], jnp.float32), size)
  turns = days[..., None] * jnp.repeat(turns_per_day, 2)
  return cos_turns(turns, shift) * size**-0.5


def _waves_forward(
  days: Array, turns_per_day: Array
) -> tuple[Array, tuple[Array, ...]]:
  codes = waves(days, turns_per_day)
  return codes, (days, turns_per_day, codes)


def _waves_backward(
  residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array]:
  """The sum over all times is a matrix product, on any device."""
  days, turns_per_day, codes = residuals
  grad_days, grad_turns = platforms.on_cpu(
    _grads_in_pairs, _grads_by_column, days, turns_per_day, codes, cotangent
  )
  return grad_days, grad_turns


def _grads_in_pairs(
  days: Array, turns_per_day: Array, codes: Array, cotangent: Array
) -> tuple[Array, Array]:
  """Cosine and sine are each other's derivatives: none is computed again."""
  pairs = (*turns_per_day.shape, 2)
  cos, sin = jnp.moveaxis(codes.reshape(-1, *pairs), -1, 0)
  of_cos, of_sin = jnp.moveaxis(cotangent.reshape(-1, *pairs), -1, 0)
  grad = 2 * jnp.pi * (of_sin * cos - of_cos * sin)
  return (grad @ turns_per_day).reshape(days.shape), days.reshape(-1) @ grad


def _grads_by_column(
  days: Array, turns_per_day: Array, codes: Array, cotangent: Array
) -> tuple[Array, Array]:
  """A derivative is a quarter ahead; columns of a pair are never parted."""
  del codes
  slopes = 2 * jnp.pi * _columns(days, turns_per_day, behind=-0.25)
  grad = (cotangent * slopes).reshape(days.size, -1)
  of_pairs = days.reshape(-1) @ grad
  return (
    (grad @ jnp.repeat(turns_per_day, 2)).reshape(days.shape),
    of_pairs.reshape(-1, 2).sum(axis=-1),
  )


waves.defvjp(_waves_forward, _waves_backward)


def _encode(turns_per_day: Array, days: Array) -> Array:
  return waves(days, turns_per_day)


class TimeEncoding(nn.Module):
  """`phi(x) = sqrt(1/k) [cos w_1 x, sin w_1 x, ..., cos w_k x, sin w_k x]`.

  Attributes:
    dim: 2k, even.
  """

  dim: int

  def setup(self) -> None:
    periods = np.geomspace(SHORTEST_DAYS, LONGEST_DAYS, self.dim // 2)
    # Learned as logarithms: Adam's steps are equally long for all weights, and
    # one that suits a period of hours would wreck a period of years. The name
    # tells the optimizer to clip this gradient on its own.
    self.log_frequencies = self.param(
      'log_time_frequencies',
      lambda _: jnp.asarray(np.log(2 * np.pi / periods), jnp.float32),
    )

  def __call__(self, days: Array) -> Array:
    """Encodes f32[...] days as f32[..., dim]."""
    return self.function()(days)

  def function(self) -> jax.tree_util.Partial:
    """The encoding as a pytree that can be called, its leaf the frequencies."""
    turns_per_day = jnp.exp(self.log_frequencies) / (2 * jnp.pi)
    return jax.tree_util.Partial(_encode, turns_per_day)
