"""Popularity: the number of an item's earlier events (SPEC 6)."""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """No fields."""
  return ml_collections.ConfigDict()


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system; its memory is the count of every item."""
  del config

  def init(inputs: Inputs) -> Array:
    return jnp.zeros([inputs.num_items + 1], jnp.int32)

  def embed(
    memory: Array,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del inputs, user_times, item_time
    return counts.embeddings(users, items, memory.astype(jnp.float32))

  def update(memory: Array, inputs: Inputs, events: EventBatch) -> Array:
    del inputs
    rows = counts.rows_to_write(events.items, events.mask)
    return jnp.asarray(memory).at[rows].add(1, mode='drop')

  return counting_system.build(init, jnp.zeros_like, embed, update)
