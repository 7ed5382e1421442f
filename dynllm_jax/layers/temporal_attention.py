"""Temporal graph attention over neighborhoods (TGAN, SPEC 3.2 and 3.3)."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import temporal
from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.layers import tabulated_layer
from dynllm_jax.layers.attention import SingleQueryAttention
from dynllm_jax.layers.mlp import MLP
from dynllm_jax.layers.mlp import Projected
from dynllm_jax.layers.tabulated_layer import LayerWeights
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import KeyRows
from dynllm_jax.types import NodeTables
from dynllm_jax.types import QueryRows

# (side, nodes i32[...]) -> f32[..., dim], a node as neighbor or query.
Read = Callable[[str, Array], Array]
Codes = Callable[[Array], TimeCodes]  # f32[...] days -> phi of them

TABULATED = ('item', 1)  # side and depth of the layer that has tables


class Sources(NamedTuple):
  """What every step of the recursion over neighborhoods reads.

  Attributes:
    inputs: for the graphs.
    read: layer 0, the memory and static vectors of nodes of a side.
    codes: phi, not yet computed.
    deterministic: whether dropout is off.
  """

  inputs: Inputs
  read: Read
  codes: Codes
  deterministic: bool

  @property
  def tables(self) -> NodeTables | None:
    """What is known of nodes already, where parameters stand still."""
    return self.inputs.tables


class TemporalLayer(nn.Module):
  """One TGAN layer: attention, then an MLP that merges its result and the node.

  Attributes:
    dim: d.
    num_heads: H.
    dropout: rate on the attention weights.
  """

  dim: int
  num_heads: int
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    node: Array,
    zero_code: Array,
    keys: Array,
    codes: TimeCodes,
    mask: Array,
    deterministic: bool,
  ) -> Projected:
    """Embeds nodes from their neighbors.

    Args:
      node: f32[..., dim], `h^{N,(l-1)}`.
      zero_code: f32[time_dim], phi(0).
      keys: f32[..., n, dim], the neighbors' `h^{(l-1)}`.
      codes: `phi(t - t_k)` of f32[..., n] days.
      mask: bool[..., n].
      deterministic: whether dropout is off.

    Returns:
      f32[..., dim], `h^{N,(l)}`.
    """
    attended = SingleQueryAttention(self.dim, self.num_heads, self.dropout)(
      [node, zero_code], [keys, codes], mask, deterministic
    )
    return MLP(self.dim)(attended, node)

  def weights(self) -> LayerWeights:
    """The parameters, once there are any."""
    params = self.variables['params']
    attention, mlp = params['SingleQueryAttention_0'], params['MLP_0']
    first, last = mlp['Linear_0'], mlp['Dense_0']
    return LayerWeights(
      query=attention['query'],
      key=attention['key'],
      value=attention['value'],
      out=attention['out'],
      merge=first['kernel'],
      merge_bias=first['bias'],
      last=last['kernel'],
      last_bias=last['bias'],
    )


class TemporalEmbedding(nn.Module):
  """`h^{N,(l)}(t)` by recursion over neighborhoods at t.

  Attributes:
    dim: d.
    num_neighbors: n.
    num_layers: layers there are; a call may ask for fewer.
    num_heads: H.
    shared: whether users and items share weights.
    dropout: rate on the attention weights.
  """

  dim: int
  num_neighbors: int
  num_layers: int
  num_heads: int
  shared: bool = True
  dropout: float = 0.0

  def setup(self) -> None:
    sides = ('both',) if self.shared else ('user', 'item')
    self.layers = {
      f'{side}_{depth}': TemporalLayer(self.dim, self.num_heads, self.dropout)
      for side in sides
      for depth in range(1, self.num_layers + 1)
    }

  def __call__(
    self,
    side: str,
    nodes: Array,
    times: Array,
    num_layers: int,
    sources: Sources,
  ) -> Projected:
    """Embeds nodes of one side at given times.

    Args:
      side: 'user' or 'item', the side of `nodes`.
      nodes: i32[batch].
      times: i32[batch], seconds.
      num_layers: l, 1 or more.
      sources: what is read.

    Returns:
      f32[batch, dim].
    """
    inputs, tables = sources.inputs, sources.tables
    own, other = (
      (inputs.user_graph, 'item')
      if side == 'user'
      else (inputs.item_graph, 'user')
    )
    near = temporal.neighborhood(own, nodes, times, self.num_neighbors)
    at = jnp.broadcast_to(times[:, None], near.nodes.shape)
    days = jnp.where(near.mask, temporal.days_between(at, near.times), 0.0)

    layer = self.layers[f'{"both" if self.shared else side}_{num_layers}']
    if tables is not None and (side, num_layers) == TABULATED:
      return tabulated_layer.embed(
        layer.weights(),
        sharded_table.read_rows(tables.item, nodes),
        tables.user,
        near.nodes,
        sources.codes(days).rows(),
        near.mask,
      )

    def below(side: str, nodes: Array, times: Array) -> Array:
      if num_layers == 1:
        return sources.read(side, nodes)
      return self(side, nodes, times, num_layers - 1, sources).product()

    # Rows in one axis: XLA's CPU backend copies the operands of a product
    # over several.
    keys = below(other, near.nodes.reshape(-1), at.reshape(-1))
    return layer(
      node=below(side, nodes, times),
      zero_code=sources.codes(jnp.zeros([])).rows(),
      keys=keys.reshape(*near.nodes.shape, -1),
      codes=sources.codes(days),
      mask=near.mask,
      deterministic=sources.deterministic,
    )

  def table_rows(
    self, side: str, rows: Array, zero_code: Array
  ) -> QueryRows | KeyRows:
    """What the items' layer makes of nodes alone (SPEC 5.5).

    Args:
      side: 'item' for queries, 'user' for their neighbors.
      rows: f32[nodes, dim], as `Sources.read` has them.
      zero_code: f32[time_dim], phi(0).
    """
    own, depth = TABULATED
    layer = self.layers[f'{"both" if self.shared else own}_{depth}']
    if side == own:
      return tabulated_layer.query_rows(layer.weights(), rows, zero_code)
    return tabulated_layer.key_rows(layer.weights(), rows)
