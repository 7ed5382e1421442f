"""LightGCN (He et al. 2020, arXiv 2002.02126).

`E^(k+1) = D^-1/2 A D^-1/2 E^(k)` (eq. 3), the final embedding the mean of all
layers, `E^(0)` included (eq. 4, `alpha_k = 1 / (K + 1)`), the score a dot
product (eq. 5). The regularizer is that of SPEC 3.9, on the batch's final
embeddings, where the paper's is on `E^(0)`.
"""

from flax import linen as nn
import ml_collections

from dynllm_jax.bases import static_graph
from dynllm_jax.kernels.propagation import normalized_sums
from dynllm_jax.types import Array
from dynllm_jax.types import System
from dynllm_jax.types import TrainGraph


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting; its width is 64."""
  return ml_collections.ConfigDict({'dim': 128, 'num_layers': 3})


def default_train() -> dict[str, object]:
  """The paper's objective (eq. 15) and lambda."""
  return {
    'loss': 'bpr',
    'num_negatives': 1,
    'negatives': 'uniform',
    'regularization': 1e-4,
  }


class LightGCN(nn.Module):
  """The network: learned vectors and nothing else."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(
    self, graph: TrainGraph, text: Array, deterministic: bool
  ) -> Array:
    """Final embeddings, f32[nodes, dim]; arguments as `static_graph.build`."""
    del deterministic
    layer = static_graph.NodeFeatures(
      self.config.dim, initializer=nn.initializers.normal(0.1)
    )(graph, text)
    total = layer
    for _ in range(self.config.num_layers):
      layer = normalized_sums(graph, layer)
      total += layer
    return total / (self.config.num_layers + 1)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  static_graph.check(config)
  return static_graph.build(LightGCN(ml_collections.FrozenConfigDict(config)))
