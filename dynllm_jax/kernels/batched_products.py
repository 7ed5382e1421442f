"""Products of a few matrices each, batched everywhere but on a CPU.

XLA's CPU backend transposes the operands of a batched product, so that one
product after the other is faster there. On a GPU each is a launch of its own,
several with its gradients.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def einsum(formula: str, batch: str, left: Array, right: Array) -> Array:
  """`jnp.einsum(formula, left, right)`, and such products as its gradient.

  Args:
    formula: of two operands, such as 'bhk,phk->bhp'; every letter stands in
      two of its three parts or more.
    batch: the letter that stands in all three, over which a CPU goes one by
      one.
    left, right: f32[...].

  Returns:
    f32[...].
  """
  return platforms.on_cpu(
    functools.partial(_one_by_one, formula, batch),
    functools.partial(jnp.einsum, formula),
    left,
    right,
  )


def _one_by_one(formula: str, batch: str, left: Array, right: Array) -> Array:
  """The product by a product for each index of the batch letter."""
  of_left, of_right, of_result = _parts(formula)
  take: Callable[..., Array] = lambda x, letters, index: jnp.take(
    x, index, axis=letters.index(batch)
  )
  return jnp.stack(
    [
      jnp.einsum(
        formula.replace(batch, ''),
        take(left, of_left, index),
        take(right, of_right, index),
      )
      for index in range(left.shape[of_left.index(batch)])
    ],
    axis=of_result.index(batch),
  )


def _parts(formula: str) -> list[str]:
  """The letters of both operands and of the result."""
  return formula.replace('->', ',').split(',')


def _forward(
  formula: str, batch: str, left: Array, right: Array
) -> tuple[Array, tuple[Array, Array]]:
  return einsum(formula, batch, left, right), (left, right)


def _backward(
  formula: str, batch: str, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
  left, right = residuals
  of_left, of_right, of_result = _parts(formula)
  return (
    einsum(f'{of_result},{of_right}->{of_left}', batch, grad, right),
    einsum(f'{of_left},{of_result}->{of_right}', batch, left, grad),
  )


einsum.defvjp(_forward, _backward)
