"""Binary searches in many slices at once, in the form that each device likes.

On a GPU every round of a loop is four launches, which take longer than what
they do; written one after the other, rounds fuse. Elsewhere a loop is a fast
program that compiles quickly.
"""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array

_Bounds = tuple[Array, Array]


def search(
  values: Array,
  low: Array,
  high: Array,
  target: Array,
  longest: int,
  side: str = 'left',
) -> Array:
  """First position in `[low, high)` whose value is not below the target.

  The number of rounds is fixed, so that devices which share the queries need
  not agree on when to stop.

  Args:
    values: i32[n], ascending within each slice.
    low, high: i32[...], the slices.
    target: i32[...].
    longest: no slice is longer.
    side: 'left', or 'right' for the first value that is above the target.

  Returns:
    i32[...]; `high` where there is none.
  """
  if values.shape[0] == 0:
    return low
  values = jnp.asarray(values)
  by_loop, in_line = (
    functools.partial(_search, longest.bit_length(), side, unroll)
    for unroll in (False, True)
  )
  return platforms.on_gpu(in_line, by_loop, values, low, high, target)


def find(values: Array, target: Array) -> Array:
  """`jnp.searchsorted`: the first position whose value is not below the target.

  Args:
    values: i32[n], ascending.
    target: i32[...].

  Returns:
    i32[...], n where every value is below the target.
  """
  low = jnp.zeros_like(target)
  return search(values, low, low + len(values), target, len(values))


def _search(
  rounds: int,
  side: str,
  unroll: bool,
  values: Array,
  low: Array,
  high: Array,
  target: Array,
) -> Array:
  """`search`, by a loop or with its rounds in line."""

  def halve(_: Array | int, bounds: _Bounds) -> _Bounds:
    low, high = bounds
    middle = low + (high - low) // 2  # low + high may overflow
    value = jnp.take(values, middle, mode='clip')
    below = value < target if side == 'left' else value <= target
    below &= low < high
    return (
      jnp.where(below, middle + 1, low),
      jnp.where(below, high, jnp.maximum(middle, low)),
    )

  if not unroll:
    return jax.lax.fori_loop(0, rounds, halve, (low, high))[0]
  bounds = low, high
  for turn in range(rounds):
    bounds = halve(turn, bounds)
  return bounds[0]
