"""Attention of few queries a row over the row's keys, and its gradient.

Autodiff of `masked_softmax(queries . keys) keys` writes the gradient of the
keys once for each head and use and adds them up. Here it is one expression.
What XLA's CPU backend makes of a batch of small products also reads the keys
once for each head; there every product is a chain of elementwise steps that
takes all heads in one pass, two to three times as fast from ten keys on.

Rows in tiles, whose keys and time codes stay in a cache and are computed again
backwards, are no faster on two cores: a loop over tiles takes 1.3 to 1.8 times
as long (200 and 400 rows of 50 keys, 10 to 100 rows a tile), tiles one after
the other .95 to 1.4 times. What does save passes on a CPU: codes of times are
cosines and sines apart, and a sum over them stands in for their gradient. A
step of TGN takes .87 of the time with 50 neighbors a node (200 events), .98
with ten (2,048 events); on one core, in turn, otherwise idle. With three it
takes more, so that few keys keep their codes as rows.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import platforms
from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.types import Array

FEW_KEYS = 4  # so few keys a row that those of a batch stay in a CPU's cache
MANY_KEYS = 128  # beyond it the program, a step a key, compiles too slowly
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


def attend(
  queries: list[Array],
  keys: Sequence[Array | TimeCodes],
  mask: Array,
  scale: Array,
) -> list[Array]:
  """The mean of the keys, weighted by `scale softmax(queries . keys)`.

  Args:
    queries: parts of the queries, f32[batch, heads, part_dim] each.
    keys: the same parts of the keys, f32[batch, n, part_dim] each; the last may
      be codes of f32[batch, n] days, which then have no gradient.
    mask: bool[batch, n].
    scale: f32[batch, heads, n], of dropout; it has no gradient.

  Returns:
    The same parts of the means, f32[batch, heads, part_dim] each; zero for a
    row without a key.
  """
  *others, codes = keys
  if not isinstance(codes, TimeCodes):
    return _attend(queries, list(keys), None, mask, scale)
  *plain, of_codes = queries
  apart = [*plain, of_codes[..., 0::2], of_codes[..., 1::2]]
  *means, cosines, sines = _attend(apart, others, codes, mask, scale)
  in_turn = jnp.stack([cosines, sines], axis=-1).reshape(of_codes.shape)
  return [*means, in_turn]


@jax.custom_vjp
def _attend(
  queries: list[Array],
  keys: list[Array],
  codes: TimeCodes | None,
  mask: Array,
  scale: Array,
) -> list[Array]:
  """`attend`; the last two queries and means are of cosines and of sines."""
  return _attend_forward(queries, keys, codes, mask, scale)[0]


class _Residuals(NamedTuple):
  """What the gradient reads.

  Attributes:
    queries, scale: of `_attend`.
    days: of the codes, if there are any.
    rows: the keys; then the cosines and the sines of the codes.
    weights: f32[batch, heads, n], before dropout.
  """

  queries: list[Array]
  days: Array | None
  rows: list[Array]
  weights: Array
  scale: Array


def _attend_forward(
  queries: list[Array],
  keys: list[Array],
  codes: TimeCodes | None,
  mask: Array,
  scale: Array,
) -> tuple[list[Array], _Residuals]:
  rows = [*keys, *(codes.halves() if codes else ())]
  logits = _total(map(dots, queries, rows))
  weights = masked_softmax(logits, mask[:, None])
  scaled = weights * scale
  means = [mix(scaled, part) for part in rows]
  days = codes.days if codes else None
  return means, _Residuals(queries, days, rows, weights, scale)


def _attend_backward(
  residuals: _Residuals, grads: list[Array]
) -> tuple[list[Array], list[Array], TimeCodes | None, None, None]:
  queries, days, rows, weights, scale = residuals
  grad = scale * _total(map(dots, grads, rows))
  total = jnp.sum(weights * grad, axis=-1, keepdims=True)
  grad_logits = weights * (grad - total)  # of a softmax
  scaled = weights * scale

  plain = len(rows) if days is None else len(rows) - 2
  grad_queries = [mix(grad_logits, part) for part in rows[:plain]]
  grad_keys = [
    _grad_keys(grad_logits, query, scaled, grad)
    for query, grad in zip(queries[:plain], grads[:plain])
  ]
  if days is None:
    return grad_queries, grad_keys, None, None, None

  # Cosine and sine are each other's derivatives, times days. So sums over the
  # codes are all that it takes: no code has a gradient of its own.
  by_day = days[:, None]
  factors = [grad_logits, grad_logits * by_day, scaled * by_day]
  (of_cosines, *cosines), (of_sines, *sines) = (
    jnp.split(mix(jnp.concatenate(factors, axis=1), part), 3, axis=1)
    for part in rows[plain:]
  )
  grad_turns = _total(
    jnp.sum(to_sine * cosine - to_cosine * sine, axis=(0, 1))
    for (to_cosine, to_sine), cosine, sine in zip(
      (queries[plain:], grads[plain:]), cosines, sines
    )
  )
  grad_codes = TimeCodes(jnp.zeros_like(days), 2 * jnp.pi * grad_turns)
  return (
    [*grad_queries, of_cosines, of_sines],
    grad_keys,
    grad_codes,
    None,
    None,
  )


_attend.defvjp(_attend_forward, _attend_backward)


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
  if keys.shape[1] > MANY_KEYS:
    return plain(left, keys)
  return _on_cpu(function, plain, left, keys)


def dots(queries: Array, keys: Array) -> Array:
  """f32[batch, heads, n], every query with every key of its row."""
  return _product('bhd,bnd->bhn', _dots_on_cpu, queries, keys)


def _dots_on_cpu(queries: Array, keys: Array) -> Array:
  if not _lanes(keys.shape[-1]):
    return jnp.stack(
      [
        jnp.einsum('bd,bnd->bn', queries[:, head], keys)
        for head in range(queries.shape[1])
      ],
      axis=1,
    )
  partial = partial_dots(queries[:, :, None], keys[:, None])
  return partial @ jnp.ones(partial.shape[-1])


def partial_dots(left: Array, right: Array) -> Array:
  """Products over the last axis, summed up to pieces as a CPU has registers.

  Args:
    left, right: f32[..., dim], broadcastable.

  Returns:
    f32[..., lanes], the sum of which is the dot product.
  """
  dim = left.shape[-1]
  lanes = _lanes(dim) or dim
  return _total(
    left[..., low : low + lanes] * right[..., low : low + lanes]
    for low in range(0, dim, lanes)
  )


def _lanes(dim: int) -> int:
  """The width of pieces of an axis, 0 where none divides it."""
  return next((lanes for lanes in _LANES if dim % lanes == 0), 0)


def mix(weights: Array, keys: Array) -> Array:
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
