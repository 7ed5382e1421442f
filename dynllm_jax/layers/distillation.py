"""Distillation of a facet to its r most telling coordinates (SPEC 3.7)."""

import jax
import jax.numpy as jnp

from dynllm_jax.types import Array

ORDERS = ('score', 'index', 'mask', 'none')
_MAX_COUNTED = 256  # a program of d comparisons must compile quickly


def distill(facet: Array, query: Array, top_r: int, order: str) -> Array:
  """`h_hat = [h * tanh(s)]_j` with `s = h q / |q|`, j the top r of s.

  Args:
    facet: f32[..., d], h.
    query: f32[d] or broadcastable, q, learned, not zero.
    top_r: r, at most d.
    order: 'score' (paper: slots in descending score), 'index' (slots in the
      order of the coordinates), 'mask' (all d coordinates, the others zero) or
      'none' (no distillation, for ablations).

  Returns:
    f32[..., r], or f32[..., d] for 'mask' and 'none'.
  """
  if order == 'none':
    return facet
  scores = facet * query / jnp.linalg.norm(query, axis=-1, keepdims=True)
  gated = facet * jnp.tanh(scores)
  index = top_indices(jax.lax.stop_gradient(scores), top_r)
  if order == 'mask':
    keep = jnp.put_along_axis(
        jnp.zeros(scores.shape, bool), index, True, axis=-1, inplace=False)
    return jnp.where(keep, gated, 0.0)
  if order == 'index':
    index = jnp.sort(index, axis=-1)
  return jnp.take_along_axis(gated, index, axis=-1)


def top_indices(scores: Array, top_r: int) -> Array:
  """The indices of `lax.top_k`; on CPU found by counting.

  XLA sorts row by row on CPU. Counting compares every pair of a row's d
  values, which takes whole vectors at a time and a third of the time at
  d = 128; there are no jumps and nothing is written in between.

  Args:
    scores: f32[..., d].
    top_r: r.

  Returns:
    i32[..., r], descending; of equal scores the lower index first.
  """
  sort = lambda x: jax.lax.top_k(x, top_r)[1]
  if scores.shape[-1] > _MAX_COUNTED:
    return sort(scores)
  return jax.lax.platform_dependent(
      scores, cpu=lambda x: _counted(x, top_r), default=sort)


def _counted(scores, top_r):
  """A value's place is the number of those before it."""
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  keys = jnp.where(bits < 0, bits ^ jnp.int32(0x7fffffff), bits)
  width = scores.shape[-1]
  column = jnp.arange(width, dtype=jnp.int32)
  place = jnp.zeros(keys.shape, jnp.int32)
  for j in range(width):
    # An equal key comes before those to its right.
    place += keys[..., j:j + 1] > keys - (column > j)
  slot = jnp.arange(top_r, dtype=jnp.int32)
  index = jnp.zeros((*keys.shape[:-1], top_r), jnp.int32)
  for j in range(width):
    index = jnp.where(place[..., j:j + 1] == slot, j, index)
  return index
