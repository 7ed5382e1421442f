"""Popularity: the number of an item's earlier events (SPEC 6)."""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counts
from dynllm_jax.types import System


def default_config() -> ml_collections.ConfigDict:
  """No fields."""
  return ml_collections.ConfigDict()


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system; its memory is the count of every item."""
  del config

  def init(key, inputs, capacity):
    del key, capacity
    return {}, jnp.zeros([inputs.num_items + 1], jnp.int32)

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    del params, inputs, user_times, item_time, key
    return counts.embeddings(users, items, memory.astype(jnp.float32))

  def update(params, memory, inputs, pending):
    del params, inputs
    events = pending.events
    place = counts.rows_to_write(events.items, events.mask)
    return memory.at[place].add(1, mode='drop')

  return System('none', True, init, jnp.zeros_like, embed, update)
