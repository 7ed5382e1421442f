"""A temporal layer from tables of its nodes (SPEC 5.5).

Where parameters stand still, most of the layer (temporal_attention.py) is
linear in what is known of a node before any time is. Ranking reads that from
tables; what is left for each item are products with its time codes.
"""

import math
from typing import NamedTuple

import jax

from dynllm_jax.kernels import few_query_attention
from dynllm_jax.kernels import neighbor_rows
from dynllm_jax.kernels.batched_products import einsum
from dynllm_jax.layers.mlp import Projected
from dynllm_jax.types import Array
from dynllm_jax.types import KeyRows
from dynllm_jax.types import QueryRows


class LayerWeights(NamedTuple):
  """The parameters of a `TemporalLayer`."""

  query: Array  # f32[dim + time_dim, heads, head_dim]
  key: Array  # the same
  value: Array  # the same
  out: Array  # f32[dim, dim]
  merge: Array  # f32[2 dim, dim], the perceptron's first map
  merge_bias: Array  # f32[dim]
  last: Array  # f32[dim, dim], its second
  last_bias: Array  # f32[dim]

  @property
  def dim(self) -> int:
    return len(self.out)


def query_rows(w: LayerWeights, nodes: Array, zero_code: Array) -> QueryRows:
  """Nodes as queries.

  Args:
    w: of the layer.
    nodes: f32[rows, dim], `h`.
    zero_code: f32[time_dim], phi(0).
  """
  of_node, of_code = w.query[: w.dim], w.query[w.dim :]
  own = nodes @ of_node.reshape(w.dim, -1)
  own += zero_code @ of_code.reshape(len(zero_code), -1)
  own /= math.sqrt(w.query.shape[-1])
  by_head = own.reshape(len(nodes), *w.query.shape[1:])
  return QueryRows(
    own=own,
    by_code=einsum('bhk,phk->bhp', 'h', by_head, w.key[w.dim :]),
    merged=nodes @ w.merge[w.dim :] + w.merge_bias,
  )


def key_rows(w: LayerWeights, nodes: Array) -> KeyRows:
  """Nodes as neighbors, f32[rows, dim]."""
  key, value = (
    nodes @ weights[: w.dim].reshape(w.dim, -1) for weights in (w.key, w.value)
  )
  return KeyRows(key, value)


def embed(
  w: LayerWeights,
  queries: QueryRows,
  keys: KeyRows,
  neighbors: Array,
  codes: Array,
  mask: Array,
) -> Projected:
  """The layer's result, as `TemporalLayer` has it but for rounding.

  Args:
    w: of the layer.
    queries: [batch].
    keys: the whole table.
    neighbors: i32[batch, n], its rows.
    codes: f32[batch, n, time_dim], `phi(t - t_k)`.
    mask: bool[batch, n].

  Returns:
    f32[batch, dim], `h^{N,(l)}`.
  """
  by_head = queries.own.reshape(len(queries.own), *w.query.shape[1:])
  logits = neighbor_rows.dots(by_head, keys.key, neighbors)
  logits += few_query_attention.dots(queries.by_code, codes)
  shares = few_query_attention.masked_softmax(logits, mask[:, None])

  of_nodes = neighbor_rows.mix(shares, keys.value, neighbors)
  mean_codes = few_query_attention.mix(shares, codes)
  of_codes = einsum('bhp,phk->bhk', 'h', mean_codes, w.value[w.dim :])
  attended = of_nodes + of_codes.reshape(of_nodes.shape)
  hidden = jax.nn.relu(attended @ (w.out @ w.merge[: w.dim]) + queries.merged)
  return Projected(hidden, w.last, w.last_bias)
