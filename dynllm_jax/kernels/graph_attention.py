"""Attention over all neighbors of every node (Velickovic et al. 2018).

Over the same trees of gathers as `propagation`, with a backward pass of its
own: the gradient that reaches a node from all its neighbors is a sum over the
same symmetric graph, with weights computed again from the other side of each
edge.
"""

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import propagation
from dynllm_jax.types import Array
from dynllm_jax.types import TrainGraph

_SLOPE = 0.2  # of the LeakyReLU, as in the paper


def attend(graph: TrainGraph, query: Array, key: Array, value: Array) -> Array:
  """`sum_j alpha_ij value_j` over node i's neighbors j and i itself.

  `alpha_i = softmax_j(LeakyReLU(query_i + key_j))`, equations 1 to 4 of the
  paper, where `query_i = a_1 . W h_i`, `key_j = a_2 . W h_j`.

  Args:
    graph: of the training pairs.
    query, key: f32[nodes, heads].
    value: f32[nodes, heads, head_dim].

  Returns:
    f32[nodes, heads, head_dim].
  """
  own = _leaky(query + key)
  # A softmax is the same whatever is subtracted: no gradient is needed.
  top = jax.lax.stop_gradient(
    jnp.maximum(_largest_logits(graph, query, key), own)
  )
  own = jnp.exp(own - top)
  sums, totals = _exponential_sums(graph, query, key, top, value)
  return (sums + own[..., None] * value) / (totals + own)[..., None]


def _leaky(logits: Array) -> Array:
  return jax.nn.leaky_relu(logits, _SLOPE)


def _largest_logits(graph: TrainGraph, query: Array, key: Array) -> Array:
  """f32[nodes, heads]; -inf for a node without a neighbor."""
  places = graph.levels[0]
  logits = _leaky(query[graph.owners][:, None] + key[places])
  logits = jnp.where((places > 0)[..., None], logits, -jnp.inf)
  largest = logits.max(axis=1)
  for level in graph.levels[1:]:
    largest = largest[level].max(axis=1)
  return largest


@jax.custom_vjp
def _exponential_sums(
  graph: TrainGraph, query: Array, key: Array, top: Array, value: Array
) -> tuple[Array, Array]:
  """Numerator and denominator of the softmax, the node itself left out.

  Args:
    graph: of the training pairs.
    query, key, top: f32[nodes, heads].
    value: f32[nodes, heads, head_dim].

  Returns:
    `sum_j w_ij value_j`, f32[nodes, heads, head_dim], and `sum_j w_ij`,
    f32[nodes, heads], where `w_ij = exp(LeakyReLU(query_i + key_j) - top_i)`.
  """
  weights, _ = _weights(
    graph,
    query[graph.owners][:, None],
    key[graph.levels[0]],
    top[graph.owners][:, None],
  )
  return _weighted_sums(graph, weights, value), _totals(graph, weights)


_Residuals = tuple[TrainGraph, Array, Array, Array, Array]


def _forward(
  graph: TrainGraph, query: Array, key: Array, top: Array, value: Array
) -> tuple[tuple[Array, Array], _Residuals]:
  return (
    _exponential_sums(graph, query, key, top, value),
    (graph, query, key, top, value),
  )


def _backward(
  residuals: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[None, Array, Array, Array, Array]:
  graph, query, key, top, value = residuals
  d_sums, d_totals = cotangents
  owners, places = graph.owners, graph.levels[0]

  # The gradient of the logit of edge (i, j) is
  # w' (d_sums_i . value_j + d_totals_i) with w' = w LeakyReLU'. The query of i
  # gets its sum over j.
  _, slopes = _weights(
    graph, query[owners][:, None], key[places], top[owners][:, None]
  )
  d_query = jnp.sum(d_sums * _weighted_sums(graph, slopes, value), -1)
  d_query += d_totals * _totals(graph, slopes)

  # The key of j gets its sum over i; so does the value, of w d_sums_i.
  weights, slopes = _weights(
    graph, query[places], key[owners][:, None], top[places]
  )
  d_key = jnp.sum(value * _weighted_sums(graph, slopes, d_sums), -1)
  d_key += _totals(graph, slopes * d_totals[places])
  d_value = _weighted_sums(graph, weights, d_sums)
  return None, d_query, d_key, jnp.zeros_like(top), d_value


_exponential_sums.defvjp(_forward, _backward)


def _weights(
  graph: TrainGraph, query: Array, key: Array, top: Array
) -> tuple[Array, Array]:
  """`w` and `w LeakyReLU'` of every place, f32[rows, fan in, heads]."""

  def compute(
    level: Array, query: Array, key: Array, top: Array
  ) -> tuple[Array, Array]:
    logits = query + key
    # Where no edge is, the difference may overflow.
    exponent = jnp.where((level > 0)[..., None], _leaky(logits) - top, -jnp.inf)
    weights = jnp.exp(exponent)
    return weights, weights * jnp.where(logits > 0, 1.0, _SLOPE)

  return propagation.over_edges(
    graph, compute, graph.levels[0], query, key, top
  )


def _weighted_sums(graph: TrainGraph, weights: Array, x: Array) -> Array:
  """`sum_j weights_ij x_j`, f32[nodes, heads, head_dim]."""
  width = x.shape[-1]

  def compute(levels: tuple[Array, ...], weights: Array, x: Array) -> Array:
    first = levels[0]
    rows = propagation.add_up(
      jnp.repeat(weights[:, k], width, axis=-1)
      * propagation.rows(x, first[:, k])
      for k in range(first.shape[1])
    )
    return propagation.sum_up(levels[1:], rows)

  return propagation.over_edges(
    graph, compute, graph.levels, weights, x.reshape(len(x), -1)
  ).reshape(x.shape)


def _totals(graph: TrainGraph, weights: Array) -> Array:
  """`sum_j weights_ij`, f32[nodes, heads]."""
  return propagation.over_edges(
    graph, propagation.sum_up, graph.levels[1:], weights.sum(axis=1)
  )
