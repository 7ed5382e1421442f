"""NGCF (Wang et al. 2019, arXiv 1905.08108).

`E^(l) = LeakyReLU((P + I) E^(l-1) W_1 + P E^(l-1) * E^(l-1) W_2)` with
`P = D^-1/2 A D^-1/2` (eq. 7), a bias in each of the two maps, dropout on the
messages, and the final embedding the layers side by side, `E^(0)` included
(eq. 9). Dropout is on a node's whole message; the slope of 0.2 and the unit
length of each layer in the final embedding are as in the authors' code.
"""

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import static_graph
from dynllm_jax.kernels.propagation import normalized_sums
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.types import Array
from dynllm_jax.types import System
from dynllm_jax.types import TrainGraph


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting, but for its width of 64 and its three layers."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'num_layers': 2,
      'dropout': 0.1,  # of messages
      'normalize': True,  # layers to unit length
    }
  )


def default_train() -> dict[str, object]:
  """The paper's objective (eq. 11) and the lambda of its code."""
  return {
    'loss': 'bpr',
    'num_negatives': 1,
    'negatives': 'uniform',
    'regularization': 1e-5,
  }


class NGCF(nn.Module):
  """The network."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(
    self, graph: TrainGraph, text: Array, deterministic: bool
  ) -> Array:
    """Final embeddings, f32[nodes, dim (layers + 1)].

    Arguments as `static_graph.build`.
    """
    c = self.config
    glorot = nn.initializers.glorot_uniform()
    layer = static_graph.NodeFeatures(c.dim)(graph, text)
    layers = [layer]
    for k in range(c.num_layers):
      sums = normalized_sums(graph, layer)
      message = nn.Dense(c.dim, kernel_init=glorot, name=f'sum_{k}')(
        sums + layer
      )
      message += nn.Dense(c.dim, kernel_init=glorot, name=f'product_{k}')(
        sums * layer
      )
      layer = Dropout(c.dropout)(nn.leaky_relu(message, 0.2), deterministic)
      layers.append(static_graph.unit_rows(layer) if c.normalize else layer)
    return jnp.concatenate(layers, axis=-1)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  static_graph.check(config)
  return static_graph.build(NGCF(ml_collections.FrozenConfigDict(config)))
