"""The graph of training pairs, and the mean time until a user returns."""

import numpy as np

from dynllm_jax.graph.temporal import pair_key
from dynllm_jax.types import EventLog
from dynllm_jax.types import SECONDS_PER_DAY
from dynllm_jax.types import TrainGraph

FAN_IN = 16  # neighbors in a row of `TrainGraph.levels`; the fastest measured


def train_graph(log: EventLog) -> TrainGraph:
  """Builds the graph of the distinct training pairs on the host."""
  events = slice(0, log.train_end)
  pairs = np.unique(pair_key(log.users[events], log.items[events]))
  users, items = pairs >> 32, log.num_users + 1 + (pairs & 0x7FFFFFFF)
  nodes = np.concatenate([users, items])
  neighbors = np.concatenate([items, users])
  order = np.lexsort((neighbors, nodes))
  num_nodes = log.num_users + log.num_items + 2
  levels, owners = _sum_tree(nodes[order], neighbors[order], num_nodes)
  return TrainGraph(
    levels=levels,
    owners=owners,
    degrees=np.bincount(nodes, minlength=num_nodes).astype(np.float32),
  )


def _sum_tree(
  nodes: np.ndarray, neighbors: np.ndarray, num_nodes: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
  """Lays out every node's neighbors as a tree of rows of FAN_IN places.

  A node with more than FAN_IN neighbors has several rows, which the next
  level gathers, and so on: the work of a sum over all neighborhoods follows
  the edges, however unequal the degrees, and never scatters.

  Args:
    nodes: i32[edges], ascending.
    neighbors: i32[edges].
    num_nodes: nodes, the padding of both sides included.

  Returns:
    `TrainGraph.levels` and `TrainGraph.owners`.
  """
  levels: list[np.ndarray] = []
  owners = None
  while True:
    # Rows that each node needs on this level. On the last one each has exactly
    # one, be it empty, so that row n is node n.
    counts = np.bincount(nodes, minlength=num_nodes)
    last = counts.max() <= FAN_IN
    rows = np.ones(num_nodes, int) if last else -(-counts // FAN_IN)
    rows[0] = 1  # stays empty: empty places of the next level read it

    # Where each neighbor stands: its number within its node's neighbors tells
    # which of the node's rows, and which place of that row.
    first = np.cumsum(rows) - rows
    number = np.arange(len(nodes)) - (np.cumsum(counts) - counts)[nodes]
    level = np.zeros((rows.sum(), FAN_IN), np.int32)
    level[first[nodes] + number // FAN_IN, number % FAN_IN] = neighbors
    levels.append(level)

    of_row = np.repeat(np.arange(num_nodes, dtype=np.int32), rows)
    owners = of_row if owners is None else owners
    if last:
      return tuple(levels), owners

    # The rows of this level are the neighbors of the next.
    nodes, neighbors = of_row[1:], np.arange(1, len(of_row))


def mean_return_days(log: EventLog) -> float:
  """mu of SPEC 3.4, in days, over training events.

  The mean time since a user's last strictly earlier event, first events left
  out; 1.0 where no training user returns.
  """
  users = log.users[: log.train_end]
  times = log.times[: log.train_end]
  # One entry for each user and distinct time, with the number of its events.
  keys, counts = np.unique(pair_key(users, times), return_counts=True)
  returns = np.diff(keys >> 32) == 0
  gaps = np.diff(keys)[returns]  # the users are equal: a difference in time
  weights = counts[1:][returns]
  if not returns.any():
    return 1.0
  return float(np.average(gaps, weights=weights) / SECONDS_PER_DAY)
