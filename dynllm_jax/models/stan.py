"""STAN (Garg et al. 2019), of the family of V-SKNN: neighbors with decay.

From "Sequence and Time Aware Neighborhood for Session-based Recommendations"
(SIGIR 2019, arXiv 1910.12781) and V-SKNN (Ludewig and Jannach 2018, arXiv
1803.09587). Sessions here are users: s is what the user took lately, a neighbor
n another user. With k the place of an item in s from its end (0: the latest)
and i* the latest item of s that n took,

    sim(s, n)  = sum over common items exp(-k / lambda_1) / sqrt(l(s) l(n))
    sim'(s, n) = sim(s, n) exp(-(t - t(n)) / lambda_2)
    score(i)   = sum_n sim'(s, n) exp(-|p_n(i*) - p_n(i)| / lambda_3)

(eq. 1 to 5) over the `num_neighbors` of highest sim'. l(s) is the number of
items in s, l(n) of all events of n so far.

The index is the temporal graph itself, which goes on in time: nothing is fitted
and nothing goes stale. Lists are of fixed size, as V-SKNN's recent sessions
are: neighbors are looked for among the `num_takers` latest takers of each item
of s. Since a user's history is much longer than a session, n is what it took
around i*: t(n) is when n took i* last, and `before` events up to that time and
`after` from it on are read, strictly earlier than the query; beyond, the decay
leaves little. A small share of recent popularity orders the rest, as in the
other systems of SPEC 6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import System
from dynllm_jax.types import Terms
from dynllm_jax.types import UserEmbeddings


class Neighbors(NamedTuple):
  """The neighbors of each user, in no order; `similarity` 0 where none is."""

  users: Array  # i32[batch, neighbors]
  items: Array  # i32[batch, neighbors], i* of each
  times: Array  # i32[batch, neighbors], seconds, when it took i* last
  similarity: Array  # f32[batch, neighbors], sim'


def default_config() -> ml_collections.ConfigDict:
  """The paper's decays of positions, and its 20 days of a neighbor's age."""
  return ml_collections.ConfigDict(
    {
      'depth': 20,  # the user's last events, s
      'num_takers': 50,  # of each item of s
      'num_neighbors': 100,
      'before': 10,
      'after': 20,
      'position_decay': 3.54,  # lambda_1, places
      'neighbor_decay_days': 20.0,  # lambda_2
      'item_decay': 3.54,  # lambda_3, places
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
    }
  )


def find_neighbors(
  config: ml_collections.ConfigDict, inputs: Inputs, users: Array, times: Array
) -> Neighbors:
  """The users most similar to each user at a time.

  Args:
    config: `config.model`.
    inputs: for the graphs.
    users: i32[batch].
    times: i32[batch], seconds.
  """
  past = temporal.neighborhood(inputs.user_graph, users, times, config.depth)
  common = counts.first_places(past)
  takers = temporal.neighborhood(
    inputs.item_graph,
    jnp.where(common, past.nodes, 0),
    times[:, None],
    config.num_takers,
  )
  each = takers.nodes.shape[1:]
  weight = jnp.exp(-jnp.arange(config.depth) / config.position_decay)
  found = _Slots(
    users=jnp.where(
      takers.mask & (takers.nodes != users[:, None, None]), takers.nodes, 0
    ),
    places=jnp.broadcast_to(jnp.arange(each[0])[:, None], takers.nodes.shape),
    items=jnp.broadcast_to(past.nodes[:, :, None], takers.nodes.shape),
    times=takers.times,
  )
  found = jax.tree.map(lambda x: x.reshape(len(users), -1), found)

  # By user, and of one user the latest place first, there the latest event.
  order = jnp.argsort(found.users, axis=1, stable=True)
  found = jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), found)
  same = found.users[:, 1:] == found.users[:, :-1]
  first = jnp.pad(~same, ((0, 0), (1, 0)), constant_values=True)
  again = same & (found.places[:, 1:] == found.places[:, :-1])
  again = jnp.pad(again, ((0, 0), (1, 0)))

  # Each user's sum stands where the user stands first.
  row, column = jnp.indices(found.users.shape)
  start = jax.lax.cummax(jnp.where(first, column, 0), axis=1)
  added = jnp.where(again | (found.users == 0), 0.0, weight[found.places])
  sums = jnp.zeros_like(added).at[row, start].add(added)
  lengths = jnp.sum(common, axis=1)[:, None] * temporal.count_before(
    inputs.user_graph, found.users, times[:, None]
  )
  age = temporal.days_between(times[:, None], found.times)
  similarity = (
    sums
    * jax.lax.rsqrt(jnp.maximum(lengths, 1).astype(jnp.float32))
    * jnp.exp(-age / config.neighbor_decay_days)
  )
  similarity = jnp.where(first & (found.users > 0), similarity, 0.0)

  size = min(config.num_neighbors, similarity.shape[1])
  best, at = jax.lax.top_k(similarity, size)
  users, items, times = (
    jnp.take_along_axis(x, at, axis=1)
    for x in (found.users, found.items, found.times)
  )
  return Neighbors(users, items, times, best)


class _Slots(NamedTuple):
  """Takers of items of s: who, of which place and item of s, and when."""

  users: Array
  places: Array
  items: Array
  times: Array


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system; its memory is a `DecayedCounts`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  counts.check_positive(
    config,
    'depth',
    'num_takers',
    'num_neighbors',
    'after',
    'position_decay',
    'neighbor_decay_days',
    'item_decay',
    'half_life_days',
  )
  checks.check('config.model', config, [checks.at_least('before', 0)])
  half_life = config.half_life_days

  def init(inputs: Inputs) -> counts.DecayedCounts:
    return counts.no_decayed_counts(inputs.num_items)

  def around(inputs: Inputs, found: Neighbors, times: Array) -> Neighborhood:
    """What neighbors took around i*, strictly earlier than the query."""
    count = temporal.count_before
    # Events so far, less those up to the last that is read.
    skip = count(inputs.user_graph, found.users, times[:, None]) - (
      count(inputs.user_graph, found.users, found.times) + config.after
    )
    return temporal.neighborhood(
      inputs.user_graph,
      found.users,
      times[:, None],
      config.before + config.after,
      skip,
    )

  def embed(
    memory: counts.DecayedCounts,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    found = find_neighbors(config, inputs, users, user_times)
    near = around(inputs, found, user_times)

    # Places count from i*; without it nothing of a neighbor is read.
    is_common = (
      near.mask
      & (near.nodes == found.items[..., None])
      & (near.times == found.times[..., None])
    )
    gap = jnp.arange(near.nodes.shape[-1]) - jnp.argmax(
      is_common, axis=-1, keepdims=True
    )
    weights = found.similarity[..., None] * jnp.exp(
      -jnp.abs(gap) / config.item_decay
    )
    read = near.mask & jnp.any(is_common, axis=-1, keepdims=True)

    recent = counts.decayed_counts_at(memory, item_time, half_life)
    return counts.embeddings(
      users,
      items,
      config.popularity_weight * recent,
      copy=Terms(
        near.nodes.reshape(len(users), -1),
        jnp.where(read, weights, 0.0).reshape(len(users), -1),
      ),
    )

  def update(
    memory: counts.DecayedCounts, inputs: Inputs, events: EventBatch
  ) -> counts.DecayedCounts:
    del inputs
    return counts.add_to_decayed_counts(memory, events, half_life)

  return counting_system.build(init, counts.reset_decayed_counts, embed, update)
