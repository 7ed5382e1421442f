"""Attention of few queries a row over the row's keys, and its gradient.

Autodiff of `masked_softmax(queries . keys) keys` writes the gradient of the
keys once for each head and use and adds them up. Here it is one expression.
What XLA's CPU backend makes of a batch of small products also reads the keys
once for each head; there every product is a chain of elementwise steps that
takes all heads in one pass, two to three times as fast from ten keys on.

Rows in tiles, whose keys and time codes stay in a cache and are computed again
backwards, are no faster on two cores: a loop over tiles takes 1.3 to 1.8 times
as long (200 and 400 rows of 50 keys, 10 to 100 rows a tile), tiles one after
the other .95 to 1.4 times.
"""

from collections.abc import Callable
from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import platforms
from dynllm_jax.types import Array

_FEW_KEYS = 4  # so few keys a row that those of a batch stay in a CPU's cache
_MANY_KEYS = 128  # beyond it the program, a step a key, compiles too slowly
_LANES = (32, 16)


def masked_softmax(logits: Array, mask: Array) -> Array:
  """Softmax over the last axis; all zero where everything is masked.

  Args:
    logits: f32[..., n].
    mask: bool[..., n], broadcastable.

  Returns:
    f32[..., n]; no gradient is NaN, whatever the mask.
  """
  low = jnp.finfo(logits.dtype).min
  top = jnp.max(jnp.where(mask, logits, low), axis=-1, keepdims=True)
  top = jax.lax.stop_gradient(jnp.where(top == low, 0.0, top))
  weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0.0)), 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1.0)


@jax.custom_vjp
def attend(
  queries: list[Array], keys: list[Array], mask: Array, scale: Array
) -> list[Array]:
  """The mean of the keys, weighted by `scale softmax(queries . keys)`.

  Args:
    queries: parts of the queries, f32[batch, heads, part_dim] each.
    keys: the same parts of the keys, f32[batch, n, part_dim] each.
    mask: bool[batch, n].
    scale: f32[batch, heads, n], of dropout; it has no gradient.

  Returns:
    The same parts of the means, f32[batch, heads, part_dim] each; zero for a
    row without a key.
  """
  return _attend_forward(queries, keys, mask, scale)[0]


_Residuals = tuple[list[Array], list[Array], Array, Array]


def _attend_forward(
  queries: list[Array], keys: list[Array], mask: Array, scale: Array
) -> tuple[list[Array], _Residuals]:
  logits = _total(map(_dots, queries, keys))
  weights = masked_softmax(logits, mask[:, None])
  scaled = weights * scale
  means = [_mix(scaled, part) for part in keys]
  return means, (queries, keys, weights, scale)


def _attend_backward(
  residuals: _Residuals, grads: list[Array]
) -> tuple[list[Array], list[Array], None, None]:
  queries, keys, weights, scale = residuals
  grad = scale * _total(map(_dots, grads, keys))
  total = jnp.sum(weights * grad, axis=-1, keepdims=True)
  grad_logits = weights * (grad - total)  # of a softmax
  return (
    [_mix(grad_logits, part) for part in keys],
    [
      _grad_keys(grad_logits, query, weights * scale, grad)
      for query, grad in zip(queries, grads)
    ],
    None,
    None,
  )


attend.defvjp(_attend_forward, _attend_backward)


def _total(terms: Iterable[Array]) -> Array:
  """The sum of arrays of one shape, one after the other."""
  total: Any = sum(terms)
  return total


def _on_cpu(
  function: Callable[..., Array], otherwise: Callable[..., Array], *args: Array
) -> Array:
  """`function(*args)` behind a barrier on a CPU, `otherwise(*args)` elsewhere.

  Without the barrier a CPU computes a chain of elementwise steps again for
  everything that reads its result.
  """
  behind = functools.partial(barriers.fusion_barrier, function)
  result: Array = platforms.on_cpu(behind, otherwise, *args)
  return result


def _product(
  formula: str, function: Callable[..., Array], left: Array, keys: Array
) -> Array:
  """`einsum(formula, left, keys)`; on a CPU by `function`, if keys are few."""
  plain = functools.partial(jnp.einsum, formula)
  if keys.shape[1] > _MANY_KEYS:
    return plain(left, keys)
  return _on_cpu(function, plain, left, keys)


def _dots(queries: Array, keys: Array) -> Array:
  """f32[batch, heads, n], every query with every key of its row."""
  return _product('bhd,bnd->bhn', _dots_on_cpu, queries, keys)


def _dots_on_cpu(queries: Array, keys: Array) -> Array:
  dim = keys.shape[-1]
  lanes = next((x for x in _LANES if dim % x == 0), 0)
  if not lanes or keys.shape[1] <= _FEW_KEYS:
    return jnp.stack(
      [
        jnp.einsum('bd,bnd->bn', queries[:, head], keys)
        for head in range(queries.shape[1])
      ],
      axis=1,
    )

  # Sums over pieces as wide as a vector register, added up within at the end.
  partial = _total(
    queries[:, :, None, low : low + lanes] * keys[:, None, :, low : low + lanes]
    for low in range(0, dim, lanes)
  )
  return partial @ jnp.ones(lanes)


def _mix(weights: Array, keys: Array) -> Array:
  """f32[batch, heads, dim], `sum_n weights_n keys_n`."""
  return _product('bhn,bnd->bhd', _mix_on_cpu, weights, keys)


def _mix_on_cpu(weights: Array, keys: Array) -> Array:
  return _total(
    weights[:, :, n, None] * keys[:, None, n] for n in range(keys.shape[1])
  )


def _grad_keys(
  grad_logits: Array, queries: Array, weights: Array, grads: Array
) -> Array:
  """f32[batch, n, dim], from both uses of the keys."""

  def outer(
    grad_logits: Array, queries: Array, weights: Array, grads: Array
  ) -> Array:
    return _total(
      factor[:, head, :, None] * rows[:, head, None]
      for factor, rows in ((grad_logits, queries), (weights, grads))
      for head in range(queries.shape[1])
    )

  def product(
    grad_logits: Array, queries: Array, weights: Array, grads: Array
  ) -> Array:
    return jnp.einsum(
      'bhn,bhd->bnd',
      jnp.concatenate([grad_logits, weights], axis=1),
      jnp.concatenate([queries, grads], axis=1),
    )

  return _on_cpu(outer, product, grad_logits, queries, weights, grads)
