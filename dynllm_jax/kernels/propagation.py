"""Sums over the neighbors of every node, by gathers alone (SPEC 6).

A sum over a neighborhood of any size is a tree of sums of FAN_IN rows
(`TrainGraph`). The graph is symmetric, so that the transposed product, which
the backward pass needs, is the same tree once more: no scatter either way,
which is slow on a CPU and of no fixed order on a GPU, and nothing of the size
edges times width is ever held.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import barriers
from dynllm_jax.types import Array
from dynllm_jax.types import TrainGraph


@jax.custom_vjp
def neighbor_sums(graph: TrainGraph, x: Array) -> Array:
  """`A x`: for every node the sum of its neighbors' rows.

  Args:
    graph: of the training pairs.
    x: f32[nodes, dim]; row 0 is not read.

  Returns:
    f32[nodes, dim]; zero for a node without a neighbor.
  """
  x = jnp.asarray(x).at[0].set(0.0)
  return over_edges(graph, sum_up, graph.levels, x)


def _forward(graph: TrainGraph, x: Array) -> tuple[Array, TrainGraph]:
  return neighbor_sums(graph, x), graph


def _backward(graph: TrainGraph, cotangent: Array) -> tuple[None, Array]:
  return None, neighbor_sums(graph, cotangent)


neighbor_sums.defvjp(_forward, _backward)


def over_edges(
  graph: TrainGraph, compute: Callable[..., Any], *args: Any
) -> Any:
  """`compute(*args)` behind a fusion barrier.

  Args:
    graph: of the training pairs.
    compute: a function of arrays that is zero for a graph without an edge.
    *args: its arguments.

  Returns:
    The result of `compute`; zeros, not computed, for a graph without an edge.
  """
  return barriers.fusion_barrier(
    compute, *args, condition=graph.degrees.max() > 0
  )


def sum_up(levels: tuple[Array, ...], x: Array) -> Array:
  """Sums of rows up the levels of `TrainGraph`.

  Args:
    levels: i32[rows, fan in] each: all levels, or the upper ones if `x` has the
      rows of the first.
    x: f32[rows, dim]; row 0 is zero.

  Returns:
    f32[nodes, dim].
  """
  for level in levels:
    # Term by term: XLA's CPU backend gathers for a sum over an axis 25 times
    # slower.
    x = add_up(rows(x, level[:, k]) for k in range(level.shape[1]))
  return x


def add_up(terms: Iterable[Array]) -> Array:
  """The sum of arrays of one shape, one after the other."""
  total: Any = sum(terms)
  return total


def rows(x: Array, index: Array) -> Array:
  """`x[index]` without a check of bounds, f32[..., dim]."""
  return jnp.asarray(x).at[index].get(mode='promise_in_bounds')


def inverse_root(degrees: Array) -> Array:
  """`d^-1/2` of f32[nodes] degrees, as f32[nodes, 1]; zero where d is zero."""
  safe = jnp.where(degrees > 0, degrees, 1.0)
  return jnp.where(degrees > 0, jax.lax.rsqrt(safe), 0.0)[:, None]


def normalized_sums(graph: TrainGraph, x: Array) -> Array:
  """`D^-1/2 A D^-1/2 x`, f32[nodes, dim]."""
  scale = inverse_root(graph.degrees)
  return scale * neighbor_sums(graph, scale * x)


def neighbor_means(graph: TrainGraph, x: Array) -> Array:
  """`D^-1 A x`, f32[nodes, dim]; zero for a node without a neighbor."""
  return neighbor_sums(graph, x) / jnp.maximum(graph.degrees, 1.0)[:, None]
