"""GCN (Kipf and Welling 2017, arXiv 1609.02907) on the training graph.

`H^(l+1) = ReLU(D^-1/2 (A + I) D^-1/2 H^(l) W^(l))` with `D` the degrees of
`A + I` (eq. 2), without the ReLU on the last layer; `H^(0)` are learned
vectors of users and items, plus the items' texts by option.
"""

from flax import linen as nn
import jax
import ml_collections

from dynllm_jax.bases import static_graph
from dynllm_jax.kernels.propagation import neighbor_sums
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.types import Array
from dynllm_jax.types import System
from dynllm_jax.types import TrainGraph


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting, but for its width."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'num_layers': 2,
      'dropout': 0.5,  # of each layer's input
      'item_text': False,
    }
  )


class GCN(nn.Module):
  """The network."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(
    self, graph: TrainGraph, text: Array, deterministic: bool
  ) -> Array:
    """Final embeddings, f32[nodes, dim]; arguments as `static_graph.build`."""
    c = self.config
    scale = jax.lax.rsqrt(graph.degrees + 1)[:, None]
    layer = static_graph.NodeFeatures(c.dim, c.item_text)(graph, text)
    for k in range(c.num_layers):
      if k:
        layer = nn.relu(layer)
      layer = Dropout(c.dropout)(layer, deterministic)
      layer = scale * layer
      layer = scale * (neighbor_sums(graph, layer) + layer)
      layer = nn.Dense(
        c.dim, kernel_init=nn.initializers.glorot_uniform(), name=f'layer_{k}'
      )(layer)
    return layer


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  static_graph.check(config)
  return static_graph.build(GCN(ml_collections.FrozenConfigDict(config)))
