"""Facet tokens: text embeddings, projected and distilled (SPEC 3.6, 3.7)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.kernels.batched_products import einsum
from dynllm_jax.layers.distillation import distill
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.mlp import normalize
from dynllm_jax.types import Array


class FacetTokens(nn.Module):
  """`h^f = LayerNorm(Dropout(W_f x))`, then distilled, one token a facet.

  Attributes:
    dim: d.
    top_r: r of the distillation.
    order: of the distillation.
    gate: of the distillation.
    dropout: rate.
  """

  dim: int
  top_r: int
  order: str
  gate: str = 'tanh'
  dropout: float = 0.0

  @nn.compact
  def __call__(self, texts: Array, known: Array, deterministic: bool) -> Array:
    """Makes the tokens.

    Args:
      texts: f16[batch, facets, llm_dim].
      known: bool[batch, facets]; where False the learned "unknown" facet
        stands in.
      deterministic: whether dropout is off.

    Returns:
      f32[batch, facets, r], `h_u^A`; d in place of r for the orders 'mask' and
      'none'.
    """
    num_facets, llm_dim = texts.shape[-2:]
    shape = (num_facets, self.dim)
    weights = self.param(
      'projection',
      nn.initializers.lecun_normal(batch_axis=0),
      (num_facets, llm_dim, self.dim),
    )
    scale = self.param('scale', nn.initializers.ones_init(), shape)
    bias = self.param('bias', nn.initializers.zeros_init(), shape)
    unknown = self.param('unknown', nn.initializers.normal(1.0), shape)

    rows = einsum('bfl,fld->bfd', 'f', texts.astype(jnp.float32), weights)
    dropped = Dropout(self.dropout)(rows, deterministic)
    facets = jnp.where(
      known[..., None], normalize(dropped) * scale + bias, unknown
    )
    if self.order == 'none':
      return facets

    query = self.param('query', nn.initializers.normal(1.0), shape)
    if self.is_mutable_collection('intermediates'):
      kept = distill(facets, query, self.top_r, 'mask', self.gate)
      self.sow('intermediates', 'kept', kept)
    return distill(facets, query, self.top_r, self.order, self.gate)
