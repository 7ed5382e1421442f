"""Small shared pieces: a two-layer perceptron and a plain normalization."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.types import Array


class MLP(nn.Module):
  """`W_2 relu(W_1 x)` with biases.

  Attributes:
    dim: width of the hidden layer and of the output.
  """
  dim: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps f32[..., any] to f32[..., dim]."""
    hidden = nn.relu(nn.Dense(self.dim)(x))
    return nn.Dense(self.dim)(hidden)


def normalize(x: Array) -> Array:
  """LayerNorm without scale or bias, f32[..., dim] (SPEC 3.4)."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.var(x, axis=-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + 1e-6)
