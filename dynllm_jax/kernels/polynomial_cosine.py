"""Cosine and sine by polynomials: XLA's own cost ten times as much on a CPU."""

import jax.numpy as jnp

from dynllm_jax.types import Array

# Minimax fits on |r| <= 1/2, in ascending powers of r^2; the errors are 8e-7
# for the cosine and 1e-7 for the sine. A test compares them with numpy.
_COS = (
  0.99999922,
  -19.73898252,
  64.92872662,
  -85.27239702,
  58.79403874,
  -21.07678217,
)
_SIN = (
  6.28318282,
  -41.3414214,
  81.59618388,
  -76.58010057,
  41.20539505,
  -12.27126261,
)


def cos_sin_turns(turns: Array) -> tuple[Array, Array]:
  """Cosine and sine of an angle given in turns, of 2 pi each.

  Args:
    turns: f32[...].

  Returns:
    `cos(2 pi turns)` and `sin(2 pi turns)`, f32[...] each, accurate to 1e-6
    for the angle as float32 holds it.
  """
  r = turns - jnp.round(turns)
  square = r * r
  return _polynomial(_COS, square), r * _polynomial(_SIN, square)


def cos_turns(turns: Array, shift: Array) -> Array:
  """Cosine of an angle given in turns, some way back.

  Args:
    turns: f32[...].
    shift: f32[...], broadcastable, of -1 to 1: by how much less to turn.

  Returns:
    `cos(2 pi (turns - shift))`, f32[...], as accurate as `cos_sin_turns`.
  """
  # Whole turns first: what is left of many turns has all of its bits.
  r = turns - jnp.round(turns) - shift
  r -= jnp.round(r)
  return _polynomial(_COS, r * r)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
  """`sum_k coefficients[k] x^k`, by Horner's rule."""
  total = jnp.full_like(x, coefficients[-1])
  for c in coefficients[-2::-1]:
    total = total * x + c
  return total
