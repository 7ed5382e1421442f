"""Fusion of the graph embedding with the facets (SPEC 3.8)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.layers.attention import SingleQueryAttention
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.mlp import MLP
from dynllm_jax.types import Array

FUSIONS = ('merge', 'blend', 'residual', 'added')


class Fusion(nn.Module):
  """Attention of `h_u^G` over the facet tokens, then one of four sums.

  Attributes:
    dim: d.
    num_heads: H.
    num_layers: depth; the query of a deeper layer is the previous output.
    mode: 'merge' `MLP(h^G || Attn)`, 'blend'
      `alpha Attn + (1 - alpha) MLP(Dropout(h^A))`, 'residual'
      `MLP(h^G) + gate * Attn`, or 'added' `h^G + gate * Attn`, the gate learned
      and zero at the start: the network without facets, to which they are
      added.
    alpha: of 'blend'.
    dropout: rate on attention weights and, for 'blend', on the tokens.
  """

  dim: int
  num_heads: int
  num_layers: int = 1
  mode: str = 'merge'
  alpha: float = 0.5
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, graph_embedding: Array, tokens: Array, deterministic: bool
  ) -> Array:
    """Fuses.

    Args:
      graph_embedding: f32[batch, dim], `h_u^G`.
      tokens: f32[batch, facets, width], `h_u^A`.
      deterministic: whether dropout is off.

    Returns:
      f32[batch, dim], `h_u`.
    """
    mask = jnp.ones(tokens.shape[:-1], bool)
    query = graph_embedding
    for _ in range(self.num_layers):
      attended = SingleQueryAttention(self.dim, self.num_heads, self.dropout)(
        [query], [tokens], mask, deterministic
      )
      query = attended.product()
    if self.mode == 'merge':
      return MLP(self.dim)(graph_embedding, attended).product()
    if self.mode in ('residual', 'added'):
      gate = self.param('gate', nn.initializers.zeros_init(), (self.dim,))
      if self.mode == 'residual':
        graph_embedding = MLP(self.dim)(graph_embedding).product()
      return graph_embedding + gate * query
    dropped = Dropout(self.dropout)(tokens, deterministic)
    flat = dropped.reshape(len(dropped), -1)
    fed = MLP(self.dim)(flat).product()
    return self.alpha * query + (1 - self.alpha) * fed
