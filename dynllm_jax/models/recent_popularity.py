"""Recent popularity: `sum 0.5^((t - t_k) / half-life)` over events (SPEC 6)."""

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
  """The half-life of SPEC 6."""
  return ml_collections.ConfigDict({'half_life_days': 30.0})


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system; its memory is a `DecayedCounts`.

  Raises:
    InputError: if the half-life is not above 0.
  """
  counts.check_positive(config, 'half_life_days')
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
    del inputs, user_times
    return counts.embeddings(
      users, items, counts.decayed_counts_at(memory, item_time, half_life)
    )

  def update(
    memory: counts.DecayedCounts, inputs: Inputs, events: EventBatch
  ) -> counts.DecayedCounts:
    del inputs
    return counts.add_to_decayed_counts(memory, events, half_life)

  return counting_system.build(init, counts.reset_decayed_counts, embed, update)
