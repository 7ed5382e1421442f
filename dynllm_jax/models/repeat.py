"""Repeat: the user's own last items, the most recent highest (SPEC 6)."""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import Terms
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The setting of SPEC 6."""
  return ml_collections.ConfigDict(
    {
      'depth': 20,  # the user's last events that are read
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
    }
  )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  The score is `1 / (k + 1)` for the item of the user's k-th last event, plus a
  small share of recent popularity, which orders all other items. Its memory is
  a `DecayedCounts`; the user's events come from the graph.

  Raises:
    InputError: if depth or half-life are not above 0.
  """
  counts.check_positive(config, 'depth', 'half_life_days')
  half_life = config.half_life_days

  def init(inputs: Inputs) -> counts.DecayedCounts:
    return counts.no_decayed_counts(inputs.num_items)

  def embed(
    memory: counts.DecayedCounts,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    past = temporal.neighborhood(
      inputs.user_graph, users, user_times, config.depth
    )
    weights = 1.0 / jnp.arange(1, config.depth + 1)
    recent = counts.decayed_counts_at(memory, item_time, half_life)
    return counts.embeddings(
      users,
      items,
      config.popularity_weight * recent,
      copy=Terms(past.nodes, jnp.where(past.mask, weights, 0.0)),
    )

  def update(
    memory: counts.DecayedCounts, inputs: Inputs, events: EventBatch
  ) -> counts.DecayedCounts:
    del inputs
    return counts.add_to_decayed_counts(memory, events, half_life)

  return counting_system.build(init, counts.reset_decayed_counts, embed, update)
