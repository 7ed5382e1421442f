"""Repeat: the user's own last items, the most recent highest (SPEC 6)."""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counts
from dynllm_jax.graph import temporal
from dynllm_jax.types import System
from dynllm_jax.types import Terms


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

  def init(key, inputs, capacity):
    del key, capacity
    return {}, counts.no_decayed_counts(inputs.num_items)

  def reset(memory):
    return counts.no_decayed_counts(len(memory.value) - 1)

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    del params, key
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

  def update(params, memory, inputs, pending):
    del params, inputs
    return counts.add_to_decayed_counts(memory, pending.events, half_life)

  return System('none', True, init, reset, embed, update)
