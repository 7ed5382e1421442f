"""Dropout whose random bits cost half."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.types import Array

_STEPS = 1 << 16


class Dropout(nn.Module):
  """Sets values to zero at random and scales the others to the same mean.

  As `nn.Dropout`, which draws 32 bits a value where 16 do: the rate is rounded
  to 1 / 65,536, and so is the scale.

  Attributes:
    rate: share that is dropped, 0 or more, below 1.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    """Drops values of f32[...]; key stream 'dropout'."""
    dropped = min(round(self.rate * _STEPS), _STEPS - 1)
    if deterministic or not dropped:
      return x
    bits = jax.random.bits(self.make_rng('dropout'), x.shape, jnp.uint16)
    scale = _STEPS / (_STEPS - dropped)
    return jnp.where(bits >= jnp.uint16(dropped), x * scale, 0.0)
