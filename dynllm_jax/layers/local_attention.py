"""DyRep's localized embedding propagation (Trivedi et al., ICLR 2019)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.kernels.few_query_attention import masked_softmax
from dynllm_jax.types import Array


class LocalAttention(nn.Module):
  """`h^struct = max_i sigmoid(q_i (W z_i + b))` over a node's neighbors.

  `q` is a softmax over the neighbors of the intensity
  `lambda_i = psi log(1 + exp(w . (z || z_i) / psi))`, `psi > 0` learned.

  Attributes:
    dim: width of the result.
  """

  dim: int

  @nn.compact
  def __call__(self, node: Array, neighbors: Array, mask: Array) -> Array:
    """Attends.

    Args:
      node: f32[batch, width], z.
      neighbors: f32[batch, n, width], z_i.
      mask: bool[batch, n].

    Returns:
      f32[batch, dim]; zero for a node without a neighbor.
    """
    width = node.shape[-1]
    normal = nn.initializers.normal(width**-0.5)
    own = node @ self.param('intensity_node', normal, (width,))
    other = neighbors @ self.param('intensity_neighbor', normal, (width,))
    rate = jnp.exp(self.param('log_psi', nn.initializers.zeros_init(), ()))
    intensity = rate * jax.nn.softplus((own[:, None] + other) / rate)
    weights = masked_softmax(intensity, mask)
    heard = nn.sigmoid(weights[..., None] * nn.Dense(self.dim)(neighbors))
    return jnp.max(jnp.where(mask[..., None], heard, 0.0), axis=1)
