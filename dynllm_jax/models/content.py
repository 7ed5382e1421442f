"""Content-based (CB): items whose texts resemble those a user took.

The profile is the mean of the unit text embeddings of the user's latest
strictly earlier events, a Rocchio profile without negatives (Pazzani and
Billsus 2007, "Content-Based Recommendation Systems", section 10.5.3), and the
score its cosine with the item's text, plus a small share of recent popularity
as in the other count-based systems of SPEC 6. Nothing is learned.
"""

from typing import NamedTuple

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.bases.static_graph import unit_rows
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


class ContentMemory(NamedTuple):
  """The items' texts, which stay, and recent popularity."""

  texts: Array  # f32[items + 1, llm_dim], of unit length, or zero
  recent: counts.DecayedCounts


def default_config() -> ml_collections.ConfigDict:
  """The setting of SPEC 6."""
  return ml_collections.ConfigDict(
    {
      'depth': 50,  # the user's last events that are read
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
    }
  )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  An item without a text and a user without an event have a cosine of zero.

  Raises:
    InputError: if depth or half-life are not above 0.
  """
  counts.check_positive(config, 'depth', 'half_life_days')
  half_life = config.half_life_days

  def init(inputs: Inputs) -> ContentMemory:
    return ContentMemory(
      unit_rows(inputs.item_text[: inputs.num_items + 1].astype(jnp.float32)),
      counts.no_decayed_counts(inputs.num_items),
    )

  def reset(memory: ContentMemory) -> ContentMemory:
    return memory._replace(recent=counts.reset_decayed_counts(memory.recent))

  def embed(
    memory: ContentMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    past = temporal.neighborhood(
      inputs.user_graph, users, user_times, config.depth
    )
    profiles = unit_rows(
      counts.weighted_rows(
        memory.texts, past.nodes, past.mask.astype(jnp.float32)
      )
    )
    recent = config.popularity_weight * counts.decayed_counts_at(
      memory.recent, item_time, half_life
    )
    return UserEmbeddings(
      vector=profiles,
      item_scores=jnp.broadcast_to(recent, (len(users), len(recent))),
    ), ItemEmbeddings(items, memory.texts[items])

  def update(
    memory: ContentMemory, inputs: Inputs, events: EventBatch
  ) -> ContentMemory:
    del inputs
    return memory._replace(
      recent=counts.add_to_decayed_counts(memory.recent, events, half_life)
    )

  return counting_system.build(init, reset, embed, update)
