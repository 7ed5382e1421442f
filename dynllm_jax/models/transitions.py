"""Transitions from item to item, counted online (SPEC 6)."""

from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


class TransitionMemory(NamedTuple):
  """What was counted so far."""

  table: Array  # f32[items + 1, items + 1], c[x, y]
  sums: Array  # f32[items + 1], sum of c[x, .]
  recent: counts.DecayedCounts


def default_config() -> ml_collections.ConfigDict:
  """The setting of SPEC 6."""
  return ml_collections.ConfigDict(
    {
      'depth': 10,  # the user's last events that are read
      'shrinkage': 5.0,
      'popularity_weight': 1e-6,
      'half_life_days': 30.0,
      'max_table_gib': 6.0,  # of c, (items + 1)^2 float32
    }
  )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  `c[x, y]` grows by `1 / (k + 1)` for an event on y and the item x of its
  user's k-th last event, strictly earlier: the lines of one invoice are no
  transitions among themselves. The score is
  `sum_k c[x_k, .] / ((k + 1) (sum c[x_k, .] + shrinkage))`, plus a small share
  of recent popularity over its maximum.

  Raises:
    InputError: if a field is not above 0; `init` also if the table is larger
      than `max_table_gib`.
  """
  counts.check_positive(config, 'depth', 'shrinkage', 'half_life_days')
  half_life = config.half_life_days
  weights = 1.0 / np.arange(1, config.depth + 1, dtype=np.float32)

  def init(inputs: Inputs) -> TransitionMemory:
    rows = inputs.num_items + 1
    counts.check_table(rows - 1, config.max_table_gib)
    return TransitionMemory(
      table=jnp.zeros([rows, rows], jnp.float32),
      sums=jnp.zeros([rows], jnp.float32),
      recent=counts.no_decayed_counts(rows - 1),
    )

  def reset(memory: TransitionMemory) -> TransitionMemory:
    return TransitionMemory(
      table=jnp.zeros_like(memory.table),
      sums=jnp.zeros_like(memory.sums),
      recent=counts.reset_decayed_counts(memory.recent),
    )

  def embed(
    memory: TransitionMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    past = temporal.neighborhood(
      inputs.user_graph, users, user_times, config.depth
    )
    shares = weights / (memory.sums[past.nodes] + config.shrinkage)
    scores = counts.weighted_rows(
      memory.table, past.nodes, jnp.where(past.mask, shares, 0.0)
    )
    recent = counts.decayed_counts_at(memory.recent, item_time, half_life)
    # Before the first event all counts are zero, and so is their share.
    recent /= jnp.maximum(recent.max(), jnp.finfo(recent.dtype).tiny)
    return counts.embeddings(
      users, items, scores + config.popularity_weight * recent
    )

  def update(
    memory: TransitionMemory, inputs: Inputs, events: EventBatch
  ) -> TransitionMemory:
    past = temporal.neighborhood(
      inputs.user_graph, events.users, events.times, config.depth
    )
    source = counts.rows_to_write(past.nodes, past.mask & events.mask[:, None])
    target = jnp.broadcast_to(events.items[:, None], source.shape)
    added = jnp.broadcast_to(weights, source.shape)
    return TransitionMemory(
      table=jnp.asarray(memory.table)
      .at[source, target]
      .add(added, mode='drop'),
      sums=jnp.asarray(memory.sums).at[source].add(added, mode='drop'),
      recent=counts.add_to_decayed_counts(memory.recent, events, half_life),
    )

  return counting_system.build(init, reset, embed, update)
