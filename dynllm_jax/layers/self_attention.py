"""Self-attention over a sequence, as SASRec and eSASRec have it."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.kernels.few_query_attention import masked_softmax
from dynllm_jax.types import Array


class SelfAttention(nn.Module):
  """Multi-head self-attention without biases (SASRec, eq. 2 to 4).

  Attributes:
    num_heads: divides the width.
  """

  num_heads: int

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    """Attends.

    Args:
      x: f32[batch, length, dim].
      mask: bool[batch, query, key], whether a query sees a key.

    Returns:
      f32[batch, length, dim].
    """
    *shape, dim = x.shape
    query, key, value = (
      nn.Dense(dim, use_bias=False, name=name)(x).reshape(
        *shape, self.num_heads, -1
      )
      for name in ('query', 'key', 'value')
    )
    logits = jnp.einsum('bqhx,bkhx->bhqk', query, key)
    weights = masked_softmax(logits / jnp.sqrt(query.shape[-1]), mask[:, None])
    return jnp.einsum('bhqk,bkhx->bqhx', weights, value).reshape(x.shape)
