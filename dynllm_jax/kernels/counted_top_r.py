"""Selection of the r values with the highest scores, fast on a CPU.

`lax.top_k` sorts row by row on XLA's CPU backend, and what it selects is then
gathered value by value. Comparing every pair of a row's d scores, and every
value's place with every slot, takes whole vectors at a time and is several
times faster at d = 128. Other backends sort.
"""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array

_MAX_COUNTED = 256  # a program of d comparisons must compile quickly


def select(values: Array, scores: Array, top_r: int, order: str) -> Array:
  """The values that have the top r scores.

  Args:
    values: f32[..., d]; gradients flow to them alone.
    scores: f32[..., d]; among equal ones the first counts as the highest.
    top_r: r, at most d.
    order: 'score' (in descending score), 'index' (as they stood), or 'mask'
      (all d, the others zero).

  Returns:
    f32[..., r], or f32[..., d] for 'mask'.
  """
  by_sorting, by_counting = (
    functools.partial(how, top_r=top_r, order=order)
    for how in (select_by_sorting, select_by_counting)
  )
  if scores.shape[-1] > _MAX_COUNTED:
    return by_sorting(values, scores)
  result: Array = platforms.on_cpu(by_counting, by_sorting, values, scores)
  return result


def select_by_sorting(
  values: Array, scores: Array, top_r: int, order: str
) -> Array:
  """`select` by `lax.top_k`; arguments and result are the same."""
  _, index = jax.lax.top_k(scores, top_r)
  if order == 'mask':
    keep = jnp.put_along_axis(
      jnp.zeros(scores.shape, bool), index, True, axis=-1, inplace=False
    )
    return jnp.where(keep, values, 0.0)
  if order == 'index':
    index = jnp.sort(index, axis=-1)

  # A row's columns are distinct: its gradient is added up in no order at all.
  flat = jnp.reshape(values, (-1, values.shape[-1]))
  chosen = flat.at[
    jnp.arange(len(flat))[:, None], index.reshape(len(flat), top_r)
  ].get(mode='promise_in_bounds', unique_indices=True)
  return chosen.reshape(index.shape)


def select_by_counting(
  values: Array, scores: Array, top_r: int, order: str
) -> Array:
  """`select` by comparing every pair of scores, for XLA's CPU backend.

  Arguments and result are the same.
  """
  rank = barriers.fusion_barrier(_ranks, scores)
  keep = rank < top_r
  if order == 'mask':
    return jnp.where(keep, values, 0.0)
  slot = rank
  if order == 'index':
    slot = jnp.where(keep, jnp.cumsum(keep, axis=-1) - 1, top_r)
  return _to_slots(top_r, values, slot)


def _ranks(scores: Array) -> Array:
  """How many scores of its row come before each score, i32[..., d]."""
  # Floats as integers of the same order, of which -0.0 is below 0.0.
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  keys = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

  width = scores.shape[-1]
  column = jnp.arange(width, dtype=jnp.int32)
  rank = jnp.zeros(keys.shape, jnp.int32)
  for j in range(width):
    # An equal key comes before those to its right.
    rank += keys[..., j : j + 1] > keys - (column > j)
  return rank


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _to_slots(size: int, values: Array, slots: Array) -> Array:
  """f32[..., size]: each value in its slot; those past the last are dropped."""
  index = jnp.arange(size, dtype=jnp.int32)
  out = jnp.zeros((*values.shape[:-1], size), values.dtype)
  for j in range(values.shape[-1]):
    out = jnp.where(slots[..., j : j + 1] == index, values[..., j : j + 1], out)
  return out


def _to_slots_forward(
  size: int, values: Array, slots: Array
) -> tuple[Array, Array]:
  return _to_slots(size, values, slots), slots


def _to_slots_backward(
  size: int, slots: Array, cotangent: Array
) -> tuple[Array, None]:
  def from_slots(slots: Array, cotangent: Array) -> Array:
    out = jnp.zeros(slots.shape, cotangent.dtype)
    for slot in range(size):
      out = jnp.where(slots == slot, cotangent[..., slot : slot + 1], out)
    return out

  return barriers.fusion_barrier(from_slots, slots, cotangent), None


_to_slots.defvjp(_to_slots_forward, _to_slots_backward)
