"""ItemKNN: cosine between items over the binary training matrix (SPEC 6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.bases import item_pairs
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


class ItemKNNMemory(NamedTuple):
  """The similarities, which stay, and recent popularity."""

  table: Array  # f32[items + 1, items + 1], symmetric, 0 on the diagonal
  recent: counts.DecayedCounts


def default_config() -> ml_collections.ConfigDict:
  """The setting of SPEC 6."""
  return ml_collections.ConfigDict(
    {
      'depth': 50,  # the user's last events that are read
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
      'max_table_gib': 6.0,  # of the similarities, (items + 1)^2 float32
    }
  )


def similarities(inputs: Inputs) -> Array:
  """Cosines between items, by the users that took both in training.

  Args:
    inputs: whose first `train_events` events are read.

  Returns:
    f32[items + 1, items + 1]; 0 on the diagonal and for an item that has no
    training event.
  """
  both, takers = item_pairs.count_takers(inputs)
  inverse = jnp.where(takers > 0, jax.lax.rsqrt(takers), 0.0)
  return both * (inverse[:, None] * inverse)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  The score is the sum of the similarities to the distinct items of the user's
  last events, plus a small share of recent popularity. The similarities come
  from the training split, the user's events from all that is strictly earlier.

  Raises:
    InputError: if depth or half-life are not above 0; `init` also if the table
      is larger than `max_table_gib`.
  """
  counts.check_positive(config, 'depth', 'half_life_days')
  half_life = config.half_life_days

  def init(inputs: Inputs) -> ItemKNNMemory:
    num_items = inputs.num_items
    counts.check_table(num_items, config.max_table_gib)
    return ItemKNNMemory(
      similarities(inputs), counts.no_decayed_counts(num_items)
    )

  def reset(memory: ItemKNNMemory) -> ItemKNNMemory:
    return memory._replace(recent=counts.reset_decayed_counts(memory.recent))

  def embed(
    memory: ItemKNNMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    past = temporal.neighborhood(
      inputs.user_graph, users, user_times, config.depth
    )
    once = counts.first_places(past).astype(jnp.float32)
    scores = counts.weighted_rows(memory.table, past.nodes, once)
    recent = counts.decayed_counts_at(memory.recent, item_time, half_life)
    return counts.embeddings(
      users, items, scores + config.popularity_weight * recent
    )

  def update(
    memory: ItemKNNMemory, inputs: Inputs, events: EventBatch
  ) -> ItemKNNMemory:
    del inputs
    return memory._replace(
      recent=counts.add_to_decayed_counts(memory.recent, events, half_life)
    )

  return counting_system.build(init, reset, embed, update)
