"""Codes of times, cosines and sines, and their gradients (SPEC 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import platforms
from dynllm_jax.kernels.polynomial_cosine import cos_sin_turns
from dynllm_jax.kernels.polynomial_cosine import cos_turns
from dynllm_jax.types import Array


class TimeCodes(NamedTuple):
  """The codes of some times before they are computed, in one of two forms.

  Attributes:
    days: f32[...].
    turns_per_day: f32[k].
  """

  days: Array
  turns_per_day: Array

  @property
  def width(self) -> int:
    """2k, numbers of a code."""
    return 2 * len(self.turns_per_day)

  def rows(self) -> Array:
    """f32[..., 2k], cosine and sine in turn."""
    return waves(self.days, self.turns_per_day)

  def halves(self) -> list[Array]:
    """Cosines and sines, f32[..., k] each, half as dear on a CPU as `rows`."""
    size = len(self.turns_per_day)
    turns = self.days[..., None] * self.turns_per_day
    return [part * size**-0.5 for part in cos_sin_turns(turns)]


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
  codes = TimeCodes(days, turns_per_day)
  pairs = jnp.stack(codes.halves(), axis=-1)
  return pairs.reshape(*days.shape, codes.width)


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
