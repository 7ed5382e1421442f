"""Multi-head attention of one query over a few keys."""

from collections.abc import Sequence

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels.batched_products import einsum
from dynllm_jax.kernels.few_query_attention import attend
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.mlp import Projected
from dynllm_jax.types import Array


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
    self,
    query: Sequence[Array],
    keys: Sequence[Array],
    mask: Array,
    deterministic: bool,
  ) -> Projected:
    """Attends.

    Args:
      query: parts of the query, whose concatenation is never formed:
        f32[batch, part_dim], or f32[part_dim] where it is the same everywhere.
      keys: parts of the keys, f32[batch, n, part_dim] each.
      mask: bool[batch, n].
      deterministic: whether dropout is off.

    Returns:
      f32[batch, dim], not yet multiplied with the output projection.
    """
    head_dim = self.dim // self.num_heads
    heads = (self.num_heads, head_dim)
    projection = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=(1, 2)
    )

    def weights(name: str, parts: Sequence[Array]) -> Sequence[Array]:
      widths = [part.shape[-1] for part in parts]
      whole = self.param(name, projection, (sum(widths), *heads))
      return jnp.split(whole, np.cumsum(widths)[:-1])

    w_query = weights('query', query)
    w_key, w_value = weights('key', keys), weights('value', keys)
    w_out = self.param(
      'out', nn.initializers.lecun_normal(), (self.dim, self.dim)
    )

    projected = sum(
      part @ w.reshape(-1, self.dim) for part, w in zip(query, w_query)
    )
    by_head = projected.reshape(-1, *heads)
    queries = [
      einsum('bhk,phk->bhp', 'h', by_head, w) / jnp.sqrt(head_dim)
      for w in w_key
    ]
    scale = Dropout(self.dropout)(
      jnp.ones((len(mask), self.num_heads, mask.shape[-1])), deterministic
    )
    if self.is_mutable_collection('intermediates'):
      # With a key of its own for each place, the mean is the weights.
      size = mask.shape[-1]
      places = jnp.broadcast_to(jnp.eye(size), (*mask.shape, size))
      nothing = jnp.zeros((*scale.shape[:2], size))
      *_, shares = attend([*queries, nothing], [*keys, places], mask, scale)
      self.sow('intermediates', 'weights', shares)
    means = attend(queries, list(keys), mask, scale)
    values = sum(
      einsum('bhp,phk->bhk', 'h', mean, w) for mean, w in zip(means, w_value)
    )
    return Projected(values.reshape(-1, self.dim), w_out)
