"""Floating-point operations of a training step, counted on paper.

The count is of the leanest exact algorithm that we know, not of what the
program does, so that work which could be left out counts against the program:

- keys are folded into the query and values projected after the weighted mean
  (layers/attention.py), so that no product grows with the neighbors;
- phi(0), the time half of every query, is a constant: its product is a bias;
- the output projection of an attention and the first layer of the perceptron
  after it have nothing in between, so the product of the two is taken once a
  step; so it is with the perceptron's last layer and DynLLM's map to h^G;
- a node that is needed twice at one time is embedded once, a text that is read
  twice is mapped once, and all events of a node at one time are one update;
- neighbors that a node does not have cost nothing.

Matrix products and weighted sums are counted, a multiplication and an addition
as two operations; elementwise work (time encoding, softmax, normalization,
Adam) is not. The backward pass costs twice the forward pass, but only once
where the input is a fixed text, which needs no gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.facets import lookup
from dynllm_jax.graph import temporal
from dynllm_jax.types import Inputs

SYSTEMS = ('tgn', 'dynllm')


@dataclasses.dataclass(frozen=True)
class Counts:
  """How many distinct rows a training batch needs; means over batches.

  Attributes:
    events: real events.
    users: pairs of a user and a time.
    user_edges: their neighbors.
    items: scored items, positives and negatives.
    item_edges: their neighbors.
    inner: pairs of a neighbor of `users` and a time; 0 with one layer.
    inner_edges: the neighbors of `inner`.
    user_updates, item_updates: pairs of a node and a time.
    read_items: items that are read anywhere.
    texts: pairs of a facet and a text.
  """

  events: float
  users: float
  user_edges: float
  items: float
  item_edges: float
  inner: float
  inner_edges: float
  user_updates: float
  item_updates: float
  read_items: float
  texts: float


def count_rows(
  inputs: Inputs,
  plan: batching.BatchPlan,
  model: ml_collections.ConfigDict,
  num_negatives: int,
  sample: int = 16,
) -> Counts:
  """Counts the rows that batches of a plan need, with uniform negatives.

  Args:
    inputs: of the log.
    plan: chronological batches.
    model: `config.model`, with one or two layers.
    num_negatives: of an event.
    sample: how many batches are counted, at even distances over the plan.

  Returns:
    Means over the batches that were counted.
  """
  rng = np.random.default_rng(0)
  n = model.num_neighbors
  near = jax.jit(temporal.neighborhood, static_argnums=3)
  num_items = len(inputs.item_text) - 1
  rows = []
  places = (np.arange(sample) + 0.5) / sample * len(plan.batches)
  for place in np.unique(places.astype(int)):
    planned = plan.batches[place]
    at = slice(planned.start, planned.start + planned.size)
    users, items, times = (
      np.asarray(x[at]) for x in (inputs.users, inputs.items, inputs.times)
    )

    whom, when = _distinct(users, times)
    scored = np.unique(
      np.concatenate(
        [items, rng.integers(1, num_items + 1, num_negatives * len(items))]
      )
    )

    of_users = near(inputs.user_graph, whom, when, n)
    of_items = near(inputs.item_graph, scored, times[0], n)
    mask = np.asarray(of_users.mask)
    seen = np.asarray(of_users.nodes)[mask]
    inner, inner_edges = (), 0
    if model.num_layers == 2:
      # Padded, so that the batches share one compilation.
      inner = _distinct(seen, np.repeat(when, n).reshape(mask.shape)[mask])
      padded = [np.pad(x, (0, mask.size - len(x))) for x in inner]
      inner_edges = near(inputs.item_graph, *padded, n).mask.sum()

    rows.append(
      [
        len(items),
        len(whom),
        mask.sum(),
        len(scored),
        of_items.mask.sum(),
        len(inner[0]) if inner else 0,
        inner_edges,
        len(whom),
        len(_distinct(items, times)[0]),
        len(np.unique(np.concatenate([scored, seen]))),
        _texts(inputs, model, whom, when),
      ]
    )
  return Counts(*map(float, np.mean(np.array(rows, float), axis=0)))


def with_repeats(counts: Counts, num_negatives: int) -> Counts:
  """The rows of a program that embeds a node again each time it is needed.

  Args:
    counts: of `count_rows`.
    num_negatives: of an event.

  Returns:
    The counts, larger.
  """
  users = counts.events / counts.users
  items = counts.events * (1 + num_negatives) / counts.items
  inner = users * counts.user_edges / max(counts.inner, 1.0)
  return dataclasses.replace(
    counts,
    users=counts.events,
    user_edges=users * counts.user_edges,
    items=items * counts.items,
    item_edges=items * counts.item_edges,
    inner=inner * counts.inner,
    inner_edges=inner * counts.inner_edges,
  )


def _distinct(
  nodes: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The distinct pairs of a node and a time."""
  pairs = np.unique(np.stack([nodes, times]), axis=1)
  return pairs[0], pairs[1]


def _texts(
  inputs: Inputs,
  model: ml_collections.ConfigDict,
  users: np.ndarray,
  times: np.ndarray,
) -> int:
  """Distinct pairs of a facet and a text that users read."""
  if not model.get('facets', ()):
    return 0
  found = np.asarray(
    lookup.lookup(inputs.facets, jnp.asarray(users), jnp.asarray(times))
  )
  return sum(len(np.unique(column[column > 0])) for column in found.T)


def attention(
  rows: float, edges: float, *, query: int, key: int, dim: int, num_heads: int
) -> float:
  """Operations of an attention's forward pass, without its output projection.

  Args:
    rows: queries.
    edges: keys of all queries together.
    query: width of a query, without its constant part.
    key: width of a key.
    dim: width of all heads together.
    num_heads: H.

  Returns:
    Floating-point operations.
  """
  products = query * dim + dim * key + key * dim
  return 2 * (rows * products + edges * 2 * num_heads * key)


def merge(rows: float, dim: int) -> float:
  """Operations of a perceptron over an attention and one more vector, forward.

  Args:
    rows: vectors that come out.
    dim: width of every vector.
  """
  return 2 * rows * 3 * dim * dim


def recurrent(updates: float, message: int, dim: int) -> float:
  """Operations of a GRU, forward."""
  return 2 * updates * (message + dim) * 3 * dim


def step(
  model: ml_collections.ConfigDict,
  counts: Counts,
  llm_dim: int,
  num_negatives: int,
) -> float:
  """Operations of a training step, forward and backward.

  Args:
    model: `config.model` of tgn or dynllm with one or two layers, without the
      options that are not in their papers.
    counts: of `count_rows`.
    llm_dim: width of a text's embedding.
    num_negatives: of an event.

  Returns:
    Floating-point operations.

  Raises:
    ValueError: for another system.
  """
  layers = model.get('num_layers', 0)
  if model.name not in SYSTEMS or layers not in (1, 2):
    raise ValueError(f'{model.name} with {layers} layers: no count')
  c, d, time_dim, heads = counts, model.dim, model.time_dim, model.num_heads

  def layer(rows: float, edges: float) -> float:
    found = attention(
      rows, edges, query=d, key=d + time_dim, dim=d, num_heads=heads
    )
    return found + merge(rows, d)

  total = layer(c.users, c.user_edges) + layer(c.items, c.item_edges)
  if layers == 2:  # the users' own first layer, and their neighbors'
    total += layer(c.users + c.inner, c.user_edges + c.inner_edges)
  total += 2 * c.events * (1 + num_negatives) * d  # scores

  if model.name == 'tgn':
    message = 2 * d + time_dim
    total += recurrent(c.user_updates + c.item_updates, message, d)
    return 3 * total

  half, facets = d // 2, len(model.facets)
  total += recurrent(c.user_updates, d + time_dim, d)
  total += recurrent(c.item_updates, d + time_dim, half)
  total += 2 * c.users * 3 * d * d + 2 * c.items * (half + d) * half  # h^G
  total -= 2 * (c.users + c.items) * d * d  # the last layer before it
  if facets:
    width = model.distill.top_r
    total += attention(
      c.users, facets * c.users, query=d, key=width, dim=d, num_heads=heads
    )
    total += merge(c.users, d)
  maps = 2 * llm_dim * (c.texts * d + c.read_items * half)
  return 3 * total + 2 * maps
