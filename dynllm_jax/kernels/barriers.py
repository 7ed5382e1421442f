"""A wall for XLA's CPU backend, which fuses more than is good."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynllm_jax.types import Array


def once(compute: Callable[..., Array], *args: Array) -> Array:
  """`compute(*args)`, its arguments and its result computed once.

  XLA's CPU backend pulls cheap operations into each of their readers, however
  many they are and however often one reads a value. It pulls nothing into or
  out of a branch, and whether this one is taken it cannot know.

  Args:
    compute: a function of arrays.
    *args: not empty, of 32-bit values.

  Returns:
    The result.
  """
  shape = jax.eval_shape(compute, *args)
  first = jax.lax.bitcast_convert_type(args[0].reshape(-1)[0], jnp.int32)
  # A NaN that no operation makes.
  return jax.lax.cond(
    first != jnp.iinfo(jnp.int32).max,
    compute,
    lambda *_: jnp.zeros(shape.shape, shape.dtype),
    *args,
  )
