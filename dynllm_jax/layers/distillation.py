"""Distillation of a facet to its r most telling coordinates (SPEC 3.7)."""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels.barriers import once
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
  scores = jax.lax.stop_gradient(scores)
  by_sorting, by_counting = (
    functools.partial(how, top_r=top_r, order=order)
    for how in (select_by_sorting, select_by_counting)
  )
  if scores.shape[-1] > _MAX_COUNTED:
    return by_sorting(gated, scores)
  return jax.lax.platform_dependent(
    gated, scores, cpu=by_counting, default=by_sorting
  )


def select_by_sorting(
  values: Array, scores: Array, top_r: int, order: str
) -> Array:
  """The values at the top r scores, by `lax.top_k`.

  Args:
    values, scores: f32[..., d].
    top_r: r.
    order: as in `distill`.

  Returns:
    f32[..., r], or f32[..., d] for 'mask'.
  """
  _, index = jax.lax.top_k(scores, top_r)
  if order == 'mask':
    keep = jnp.put_along_axis(
      jnp.zeros(scores.shape, bool), index, True, axis=-1, inplace=False
    )
    return jnp.where(keep, values, 0.0)
  if order == 'index':
    index = jnp.sort(index, axis=-1)
  return jnp.take_along_axis(values, index, axis=-1)


def select_by_counting(
  values: Array, scores: Array, top_r: int, order: str
) -> Array:
  """`select_by_sorting`, for XLA's CPU backend.

  It sorts row by row there and gathers value by value. Comparing every pair of
  a row's d scores, and every value's place with every slot, takes whole
  vectors at a time and is several times faster at d = 128.
  """
  place = once(_places, scores)
  keep = place < top_r
  if order == 'mask':
    return jnp.where(keep, values, 0.0)
  if order == 'index':
    place = jnp.where(keep, jnp.cumsum(keep, axis=-1) - 1, top_r)
  return _to_slots(top_r, values, place)


def _places(scores):
  """Each score's place, i32[..., d]: how many come before it."""
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  keys = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
  width = scores.shape[-1]
  column = jnp.arange(width, dtype=jnp.int32)
  place = jnp.zeros(keys.shape, jnp.int32)
  for j in range(width):
    # An equal key comes before those to its right.
    place += keys[..., j : j + 1] > keys - (column > j)
  return place


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_slots(size, values, place):
  """f32[..., size], the value whose place each slot is."""
  slot = jnp.arange(size, dtype=jnp.int32)
  out = jnp.zeros((*values.shape[:-1], size), values.dtype)
  for j in range(values.shape[-1]):
    out = jnp.where(place[..., j : j + 1] == slot, values[..., j : j + 1], out)
  return out


def _to_slots_backward(size, place, cotangent):

  def from_slots(place, cotangent):
    out = jnp.zeros(place.shape, cotangent.dtype)
    for slot in range(size):
      out = jnp.where(place == slot, cotangent[..., slot : slot + 1], out)
    return out

  return once(from_slots, place, cotangent), None


_to_slots.defvjp(
  lambda size, values, place: (_to_slots(size, values, place), place),
  _to_slots_backward,
)
