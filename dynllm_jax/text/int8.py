"""Weights of eight bits: a quarter of float32's memory (SPEC 8.1).

An output channel's weights are multiples of one number, its scale, from -127 to
127 of them: `weight = scale * integer`. Products are computed in the type of
the rest of the model.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels import platforms

# Rows of a stored weight that are read at once, for their scales.
_ROWS = 1024
# Weights that a CPU widens at once: a megabyte of float32, as a core's cache
# holds.
_BLOCK = 2**18


class Dense(nn.Module):
  """`nn.Dense` with weights of eight bits.

  Attributes:
    features: how wide its result is.
    use_bias: whether something is added.
    dtype: in which the product is computed.
  """

  features: int
  use_bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., features]."""
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.zeros, shape, jnp.int8)
    scale = self.param('kernel_scale', nn.initializers.ones, shape[1:])
    out = _product(x.astype(self.dtype), kernel, 1) * scale.astype(self.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape[1:])
      out += bias.astype(self.dtype)
    return out


class Embed(nn.Module):
  """`nn.Embed` with a scale for each token.

  Attributes:
    num_embeddings: tokens.
    features: the width of an embedding.
    dtype: in which products are computed.
  """

  num_embeddings: int
  features: int
  dtype: Any

  def setup(self) -> None:
    """Makes the parameters."""
    shape = (self.num_embeddings, self.features)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    self.embedding = self.param('embedding', zeros, shape, jnp.int8)
    self.embedding_scale = self.param('embedding_scale', ones, shape[:1])

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Embeddings, [..., features], of tokens, i32[...]."""
    scale = self.embedding_scale[tokens].astype(self.dtype)
    return self.embedding[tokens].astype(self.dtype) * scale[..., None]

  def attend(self, x: jax.Array) -> jax.Array:
    """Products, [..., num_embeddings], with all embeddings."""
    out = _product(x.astype(self.dtype), self.embedding, 0)
    return out * self.embedding_scale.astype(self.dtype)


def _product(x: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
  """Products of `x`, [..., in], with a weight in the type of `x`.

  Args:
    x: what is multiplied.
    weight: i8[in, out], or its transpose.
    axis: which of its axes is `out`.
  """
  out: jax.Array = platforms.on_cpu(
    functools.partial(_by_blocks, axis),
    functools.partial(_at_once, axis),
    x,
    weight,
  )
  return out


def _at_once(axis: int, x: jax.Array, weight: jax.Array) -> jax.Array:
  """The product; XLA widens a weight as it reads it.

  Behind the barrier it does so in each round of a loop over tokens, and not
  once before it, for which the wide weights would have to be in memory.
  """
  x, weight = jax.lax.optimization_barrier((x, weight))
  return jnp.tensordot(x, weight.astype(x.dtype), ((-1,), (1 - axis,)))


def _by_blocks(axis: int, x: jax.Array, weight: jax.Array) -> jax.Array:
  """The product by blocks of outputs: a CPU widens a weight before it reads it.

  A block stays in its cache, and no more than one is in memory.
  """
  width = weight.shape[axis]
  blocks = min(-(-weight.size // _BLOCK), width)
  size = -(-width // blocks)

  def add(number: jax.Array, out: jax.Array) -> jax.Array:
    # The last block may have some outputs of the one before it.
    start = jnp.minimum(number * size, width - size)
    part = jax.lax.dynamic_slice_in_dim(weight, start, size, axis)
    some = jnp.tensordot(x, part.astype(x.dtype), ((-1,), (1 - axis,)))
    return jax.lax.dynamic_update_slice_in_dim(out, some, start, -1)

  zeros = jnp.zeros((*x.shape[:-1], width), x.dtype)
  return jnp.asarray(jax.lax.fori_loop(0, blocks, add, zeros))


def row_scales(stored: Any) -> np.ndarray:
  """The scale of each row of a weight, f32[rows].

  Args:
    stored: [rows, columns]; anything with `get_shape` that is read by slices,
      such as a weight in an open file of safetensors.
  """
  rows = stored.get_shape()[0]
  largest = [
    np.abs(np.asarray(stored[at : min(at + _ROWS, rows)], np.float32)).max(1)
    for at in range(0, rows, _ROWS)
  ]
  scales = np.concatenate(largest) / np.float32(127)
  return np.where(scales > 0, scales, np.float32(1))


def rounded(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Rows, [rows, columns], in multiples of their scales, i8."""
  multiples = np.rint(np.asarray(rows, np.float32) / scales[:, None])
  return np.clip(multiples, -127, 127).astype(np.int8)
