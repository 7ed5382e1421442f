"""Multi-head attention of one query over a few keys."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.types import Array


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


class SingleQueryAttention(nn.Module):
  """Multi-head attention with one query, keys = values (SPEC 3.3, 3.8).

  With a single query the key projection is folded into it,
  `q . (W_k e) = (W_k^T q) . e`, and the value projection is applied to the
  weighted mean of the keys, `sum a (W_v e) = W_v sum a e`: exact, and no
  product grows with the number of keys. Nothing has a bias, so that the output
  without any key is zero.

  Attributes:
    dim: width of the output, and of the heads together.
    num_heads: H; divides `dim`.
    dropout: rate on the attention weights.
  """
  dim: int
  num_heads: int
  dropout: float = 0.0

  @nn.compact
  def __call__(
      self, query: Array, keys: Sequence[Array], mask: Array,
      deterministic: bool) -> Array:
    """Attends.

    Args:
      query: f32[..., query_dim].
      keys: parts of the keys, f32[..., n, part_dim] each; a key is their
        concatenation, which is never formed.
      mask: bool[..., n].
      deterministic: whether dropout is off.

    Returns:
      f32[..., dim].
    """
    head_dim = self.dim // self.num_heads
    heads = (self.num_heads, head_dim)
    widths = [part.shape[-1] for part in keys]
    projection = nn.initializers.variance_scaling(
        1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=(1, 2))
    w_query = self.param('query', projection, (query.shape[-1], *heads))
    w_key = self.param('key', projection, (sum(widths), *heads))
    w_value = self.param('value', projection, (sum(widths), *heads))
    w_out = self.param(
        'out', nn.initializers.lecun_normal(), (self.dim, self.dim))
    split = [sum(widths[:k]) for k in range(1, len(widths))]

    projected = jnp.einsum('...q,qhx->...hx', query, w_query)
    folded = jnp.einsum('...hx,khx->...hk', projected, w_key)
    # One matrix-vector product a head: XLA's CPU backend takes the batched
    # product of all heads four times slower.
    logits = sum(
        jnp.stack([
            jnp.einsum('...nk,...k->...n', part, part_query[..., head, :])
            for head in range(self.num_heads)], axis=-2)
        for part_query, part in zip(jnp.split(folded, split, -1), keys))
    weights = masked_softmax(
        logits / jnp.sqrt(head_dim), mask[..., None, :])
    weights = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
    mean = jnp.concatenate(
        [jnp.einsum('...hn,...nk->...hk', weights, part) for part in keys], -1)
    values = jnp.einsum('...hk,khx->...hx', mean, w_value)
    return values.reshape(*values.shape[:-2], self.dim) @ w_out
