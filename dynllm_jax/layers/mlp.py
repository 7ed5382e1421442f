"""Small shared pieces: linear maps, a perceptron, a plain normalization."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array


class Projected(NamedTuple):
  """`rows @ matrix + bias`, not multiplied yet.

  A layer that maps it further multiplies the two matrices first: one small
  product instead of one for every row.
  """

  rows: Array  # f32[..., width]
  matrix: Array  # f32[width, dim]
  bias: Array | None = None  # f32[dim]

  def product(self) -> Array:
    """f32[..., dim]."""
    product = self.rows @ self.matrix
    return product if self.bias is None else product + self.bias


class Linear(nn.Module):
  """`W x + b`, x given in parts whose concatenation is never formed.

  Attributes:
    dim: width of the output.
  """

  dim: int

  @nn.compact
  def __call__(self, *parts: Array | Projected) -> Array:
    """Maps the parts, f32[..., any] each, to f32[..., dim]."""
    widths = [_width(part) for part in parts]
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (sum(widths), self.dim)
    )
    bias = self.param('bias', nn.initializers.zeros_init(), (self.dim,))
    total: Array = platforms.with_gradient(
      platforms.on_gpu, _map_of_whole, _map_by_part, parts, kernel, bias
    )
    return total


def _map_by_part(
  parts: tuple[Array | Projected, ...], kernel: Array, bias: Array
) -> Array:
  """`W x + b`, with a product for each part."""
  total = bias
  ends = np.cumsum([_width(part) for part in parts])[:-1]
  for part, rows in zip(parts, jnp.split(kernel, ends)):
    if isinstance(part, Projected):
      total += part.rows @ (part.matrix @ rows)
      if part.bias is not None:
        total += part.bias @ rows
    else:
      total += part @ rows
  return total


def _map_of_whole(
  parts: tuple[Array | Projected, ...], kernel: Array, bias: Array
) -> Array:
  """The same with the parts joined: fewer launches."""
  rows = [
    part.product() if isinstance(part, Projected) else part for part in parts
  ]
  return jnp.concatenate(rows, axis=-1) @ kernel + bias


def _width(part: Array | Projected) -> int:
  """The width of a part's rows, once they are multiplied."""
  if isinstance(part, Projected):
    return part.matrix.shape[-1]
  return part.shape[-1]


class _Last(nn.Module):
  """`W x + b`, not multiplied yet."""

  dim: int

  @nn.compact
  def __call__(self, rows: Array) -> Projected:
    shape = (rows.shape[-1], self.dim)
    return Projected(
      rows,
      self.param('kernel', nn.initializers.lecun_normal(), shape),
      self.param('bias', nn.initializers.zeros_init(), (self.dim,)),
    )


class MLP(nn.Module):
  """`W_2 relu(W_1 x + b_1) + b_2`, x given in parts.

  Attributes:
    dim: width of the hidden layer and of the output.
  """

  dim: int

  @nn.compact
  def __call__(self, *parts: Array | Projected) -> Projected:
    """Maps the parts, f32[..., any] each, to f32[..., dim]."""
    hidden = nn.relu(Linear(self.dim)(*parts))
    return _Last(self.dim, name='Dense_0')(hidden)


def normalize(x: Array) -> Array:
  """LayerNorm of f32[..., dim], without scale or bias (SPEC 3.4)."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.var(x, axis=-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + 1e-6)
