"""GraphSAGE (Hamilton et al. 2017, arXiv 1706.02216), mean aggregator.

`h_v^k = ReLU(W^k [h_v^(k-1), mean of h_u^(k-1) over the neighbors u of v])`,
then to unit length (algorithm 1), without the ReLU on the last layer. The mean
is over all neighbors, not over a sample of them: a step embeds the whole
training graph at once, which is what the sample stands for.
"""

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import static_graph
from dynllm_jax.kernels.propagation import neighbor_means
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.types import Array
from dynllm_jax.types import System
from dynllm_jax.types import TrainGraph


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting, but for its width and its sample."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'num_layers': 2,
      'dropout': 0.0,  # of each layer's input
      'normalize': True,  # every layer to unit length
      'item_text': False,
    }
  )


class GraphSAGE(nn.Module):
  """The network."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(
    self, graph: TrainGraph, text: Array, deterministic: bool
  ) -> Array:
    """Final embeddings, f32[nodes, dim]; arguments as `static_graph.build`."""
    c = self.config
    layer = static_graph.NodeFeatures(c.dim, c.item_text)(graph, text)
    for k in range(c.num_layers):
      if k:
        layer = nn.relu(layer)
      if k and c.normalize:
        layer = static_graph.unit_rows(layer)
      layer = Dropout(c.dropout)(layer, deterministic)
      both = jnp.concatenate([layer, neighbor_means(graph, layer)], axis=-1)
      layer = nn.Dense(
        c.dim, kernel_init=nn.initializers.glorot_uniform(), name=f'layer_{k}'
      )(both)
    return static_graph.unit_rows(layer) if c.normalize else layer


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  static_graph.check(config)
  return static_graph.build(GraphSAGE(ml_collections.FrozenConfigDict(config)))
