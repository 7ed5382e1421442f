"""Products of a few matrices each, batched everywhere but on a CPU.

XLA's CPU backend transposes the operands of a batched product, so that one
product after the other is faster there. On a GPU each is a launch of its own,
several with its gradients.
"""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array


def einsum(formula: str, batch: str, left: Array, right: Array) -> Array:
  """`jnp.einsum(formula, left, right)`.

  Args:
    formula: of two operands, such as 'bhk,phk->bhp'.
    batch: a letter of all three, over which a CPU goes one by one.
    left, right: f32[...].

  Returns:
    f32[...].
  """
  product: Array = platforms.with_gradient(
    platforms.on_cpu,
    functools.partial(_one_by_one, formula, batch),
    functools.partial(jnp.einsum, formula),
    left,
    right,
  )
  return product


def _one_by_one(formula: str, batch: str, left: Array, right: Array) -> Array:
  """The product by a product for each index of the batch letter."""
  *operands, result = formula.replace('->', ',').split(',')
  return jnp.stack(
    [
      jnp.einsum(
        formula.replace(batch, ''),
        *(
          jax.lax.index_in_dim(x, index, letters.index(batch), keepdims=False)
          for x, letters in zip((left, right), operands)
        ),
      )
      for index in range(left.shape[operands[0].index(batch)])
    ],
    axis=result.index(batch),
  )
