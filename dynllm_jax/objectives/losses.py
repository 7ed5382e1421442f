"""Pairwise and sampled-softmax losses over scores (SPEC 3.9).

All return the sum over real rows, never a mean; a negative whose `allowed` is
False is left out.
"""

import jax
import jax.numpy as jnp

from dynllm_jax.types import Array

LOSSES = ('bpr', 'margin', 'softmax', 'bce')


def bpr(
  positive: Array, negatives: Array, allowed: Array, mask: Array
) -> Array:
  """`-log sigmoid(y_pos - y_neg)`, a mean over each row's negatives.

  Args:
    positive: f32[batch].
    negatives: f32[batch, negatives].
    allowed: bool[batch, negatives].
    mask: bool[batch].

  Returns:
    f32[], the sum over rows.
  """
  losses = jax.nn.softplus(negatives - positive[:, None])
  return _sum_of_means(losses, allowed, mask)


def margin(
  positive: Array, negatives: Array, allowed: Array, mask: Array, delta: float
) -> Array:
  """`max(0, delta - y_pos + y_neg)`; arguments and result as `bpr`."""
  losses = jax.nn.relu(delta - positive[:, None] + negatives)
  return _sum_of_means(losses, allowed, mask)


def softmax(
  positive: Array,
  negatives: Array,
  allowed: Array,
  mask: Array,
  power: float = 0.0,
) -> Array:
  """Cross-entropy of the positive among itself and the allowed negatives.

  With a power q it is generalized (Zhang and Sabuncu 2018, arXiv 1805.07836):
  `(1 - p^q) / q` for `-log p`, whose gradient is that of `-log p`, times `p^q`.

  Args:
    positive, negatives, allowed, mask: as those of `bpr`.
    power: q, from 0, the plain cross-entropy, to 1.

  Returns:
    f32[], the sum over rows.
  """
  low = jnp.finfo(negatives.dtype).min
  logits = jnp.concatenate(
    [positive[:, None], jnp.where(allowed, negatives, low)], axis=1
  )
  losses = jax.nn.logsumexp(logits, axis=1) - positive
  if power:
    losses = -jnp.expm1(-power * losses) / power
  return jnp.sum(jnp.where(mask, losses, 0.0))


def bce(
  positive: Array, negatives: Array, allowed: Array, mask: Array
) -> Array:
  """`-log sigmoid(y_pos) - log(1 - sigmoid(y_neg))`, binary cross-entropy.

  The second part is a mean over each row's negatives; arguments and result as
  `bpr`.
  """
  own = jnp.sum(jnp.where(mask, jax.nn.softplus(-positive), 0.0))
  return own + _sum_of_means(jax.nn.softplus(negatives), allowed, mask)


def _sum_of_means(losses: Array, allowed: Array, mask: Array) -> Array:
  """The sum over real rows of the mean over what is allowed, f32[]."""
  total = jnp.sum(jnp.where(allowed, losses, 0.0), axis=1)
  means = total / jnp.maximum(jnp.sum(allowed, axis=1), 1)
  return jnp.sum(jnp.where(mask, means, 0.0))
