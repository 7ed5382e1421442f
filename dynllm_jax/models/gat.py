"""GAT (Velickovic et al. 2018, arXiv 1710.10903) on the training graph.

A node attends to its neighbors and to itself (eqs. 1 to 4). Heads stand side
by side, followed by an ELU (eq. 5), and on the last layer their mean is taken
(eq. 6). The paper's eight heads of width 8 are `num_heads` of width `dim /
num_heads`, on the last layer of width `dim`. Its dropout is on each layer's
input; the paper has it on the attention coefficients as well.
"""

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import static_graph
from dynllm_jax.kernels import graph_attention
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.types import Array
from dynllm_jax.types import System
from dynllm_jax.types import TrainGraph


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting, but for widths and heads."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'num_layers': 2,
      'num_heads': 2,
      'dropout': 0.6,  # of each layer's input
      'item_text': False,
    }
  )


class GATLayer(nn.Module):
  """All heads of one layer.

  Attributes:
    num_heads: K.
    head_dim: F'.
    mean: whether the heads' mean is taken; they stand side by side otherwise.
  """

  num_heads: int
  head_dim: int
  mean: bool

  @nn.compact
  def __call__(self, graph: TrainGraph, nodes: Array) -> Array:
    """Maps f32[nodes, any] to f32[nodes, head_dim or heads * head_dim]."""
    glorot = nn.initializers.glorot_uniform()
    shape = (self.num_heads, self.head_dim)
    value = nn.Dense(
      self.num_heads * self.head_dim, use_bias=False, kernel_init=glorot
    )(nodes).reshape(-1, *shape)
    query, key = (
      jnp.sum(value * self.param(name, glorot, shape), axis=-1)
      for name in ('query', 'key')
    )
    heads = graph_attention.attend(graph, query, key, value)
    joined = heads.mean(axis=1) if self.mean else heads.reshape(len(nodes), -1)
    return joined + self.param(
      'bias', nn.initializers.zeros, (joined.shape[-1],)
    )


class GAT(nn.Module):
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
      last = k == c.num_layers - 1
      layer = Dropout(c.dropout)(layer, deterministic)
      layer = GATLayer(
        c.num_heads,
        c.dim if last else c.dim // c.num_heads,
        mean=last,
        name=f'layer_{k}',
      )(graph, layer)
      if not last:
        layer = nn.elu(layer)
    return layer


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  static_graph.check(config)
  return static_graph.build(GAT(ml_collections.FrozenConfigDict(config)))
