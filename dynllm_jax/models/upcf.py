"""UP-CF (Faggioli, Polato and Aiolli 2020): users' recent baskets, shared.

From "Recency Aware Collaborative Filtering for Next Basket Recommendation"
(UMAP 2020). A basket is what a user takes at one time. With I_v the items that
v ever took and the last r baskets of v,

    pi_v(i) = #{of the last r baskets of v, those with i} / min(r, |B_v|)
    w(u, v) = |I_u & I_v| / (|I_u|^alpha |I_v|^(1 - alpha))
    score(u, i) = sum_v w(u, v)^q pi_v(i)

the user among the v with w = 1. alpha is the asymmetry, q the locality, r the
recency.

Everything goes on in time: both tables are exact at every distinct time, and an
event costs its user's row. That is why this system stands here and TIFU-KNN (Hu
et al. 2020) does not: there a new basket moves the borders of the user's groups
and thereby every weight of his vector, and the distance to all users is over
whole vectors.

The sum is over the `num_neighbors` users of highest w, since w^q leaves little
to the rest; exact where no more users have an item in common. Ties are ordered
by a small share of recent popularity, as in the other systems of SPEC 6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.graph import temporal
from dynllm_jax.kernels import barriers
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


class UpcfMemory(NamedTuple):
  """What was taken so far."""

  takers: Array  # i8[items + 1, users + 1], 1 where a user ever took an item
  sizes: Array  # f32[users + 1], |I_v|
  shares: Array  # f32[users + 1, items + 1], pi
  recent: counts.DecayedCounts


def default_config() -> ml_collections.ConfigDict:
  """Values amid the ranges that the paper tunes over."""
  return ml_collections.ConfigDict(
    {
      'recency': 25,  # r
      'locality': 5.0,  # q
      'asymmetry': 0.25,  # alpha
      'num_neighbors': 300,
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
      'max_table_gib': 6.0,  # of `takers` and `shares` together
    }
  )


def shares_of(
  inputs: Inputs, users: Array, times: Array, recency: int
) -> Array:
  """`pi` of users, from all that they took up to a time, that time included.

  Args:
    inputs: for the users' events.
    users: i32[batch].
    times: i32[batch], seconds.
    recency: r.

  Returns:
    f32[batch, items + 1].
  """
  row = jnp.arange(len(users))[:, None]

  def add(
    carry: tuple[jax.Array, jax.Array, jax.Array], past: Neighborhood
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    found, baskets, last = carry
    # Baskets are numbered from the most recent, 1, on.
    before = jnp.concatenate([last[:, None], past.times[:, :-1]], axis=1)
    is_new = past.mask & (past.times != before)
    number = baskets[:, None] + jnp.cumsum(is_new, axis=1)
    item = counts.rows_to_write(past.nodes, past.mask & (number <= recency))
    earliest = jnp.where(past.mask[:, -1], past.times[:, -1], last)
    return (
      found.at[row, item].add(1.0, mode='drop'),
      number[:, -1],
      earliest,
    )

  nothing = (
    jnp.zeros([len(users), inputs.num_items + 1], jnp.float32),
    jnp.zeros_like(users),
    jnp.full_like(times, -1),
  )
  found, baskets, _ = temporal.fold_past(
    inputs.user_graph, users, times + 1, add, nothing
  )
  return found / jnp.clip(baskets, 1, recency)[:, None]


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  Raises:
    InputError: if a field has a value that is not allowed; `init` also if the
      tables are larger than `max_table_gib`.
  """
  counts.check_positive(config, 'locality', 'half_life_days')
  checks.check(
    'config.model',
    config,
    [
      checks.at_least('recency', 1),
      checks.at_least('num_neighbors', 1),
      checks.fraction('asymmetry'),
    ],
  )
  alpha, half_life = config.asymmetry, config.half_life_days

  def init(inputs: Inputs) -> UpcfMemory:
    users, items = inputs.num_users + 1, inputs.num_items + 1
    counts.check_size(
      5 * users * items,
      config.max_table_gib,
      f'the tables of {users - 1} users and {items - 1} items',
    )
    return UpcfMemory(
      takers=jnp.zeros([items, users], jnp.int8),
      sizes=jnp.zeros([users], jnp.float32),
      shares=jnp.zeros([users, items], jnp.float32),
      recent=counts.no_decayed_counts(items - 1),
    )

  def reset(memory: UpcfMemory) -> UpcfMemory:
    return jax.tree.map(jnp.zeros_like, memory)

  def embed(
    memory: UpcfMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    both = counts.sum_of_taken(
      memory.takers, inputs.user_graph, users, user_times
    )
    sizes = jnp.maximum(memory.sizes, 1.0)
    alike = both / (sizes[users, None] ** alpha * sizes ** (1 - alpha))
    weights, neighbors = jax.lax.top_k(
      alike**config.locality, min(config.num_neighbors, len(sizes))
    )
    scores = counts.weighted_rows(memory.shares, neighbors, weights)
    recent = counts.decayed_counts_at(memory.recent, item_time, half_life)
    return counts.embeddings(
      users, items, scores + config.popularity_weight * recent
    )

  def update(
    memory: UpcfMemory, inputs: Inputs, events: EventBatch
  ) -> UpcfMemory:
    # A pair counts once, however often the events have it.
    again = (events.users[:, None] == events.users) & (
      events.items[:, None] == events.items
    )
    again &= jnp.tril(jnp.ones(again.shape, bool), -1) & events.mask
    is_new = events.mask & ~jnp.any(again, axis=1)
    is_new &= jnp.asarray(memory.takers)[events.items, events.users] == 0

    # Written once it has been read, so that no table is copied.
    mask = barriers.after(events.mask, is_new.astype(jnp.float32))
    new_users = counts.rows_to_write(events.users, is_new)
    users = counts.rows_to_write(events.users, mask)
    shares = shares_of(inputs, events.users, events.times, config.recency)
    return UpcfMemory(
      takers=jnp.asarray(memory.takers)
      .at[events.items, users]
      .set(1, mode='drop'),
      sizes=jnp.asarray(memory.sizes).at[new_users].add(1.0, mode='drop'),
      shares=jnp.asarray(memory.shares).at[users].set(shares, mode='drop'),
      recent=counts.add_to_decayed_counts(memory.recent, events, half_life),
    )

  return counting_system.build(init, reset, embed, update)
