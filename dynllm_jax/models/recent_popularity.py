"""Recent popularity: `sum 0.5^((t - t_k) / half-life)` over events (SPEC 6)."""

import ml_collections

from dynllm_jax.bases import counts
from dynllm_jax.types import System


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

  def init(key, inputs, capacity):
    del key, capacity
    return {}, counts.no_decayed_counts(inputs.num_items)

  def reset(memory):
    return counts.no_decayed_counts(len(memory.value) - 1)

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    del params, inputs, user_times, key
    return counts.embeddings(
      users, items, counts.decayed_counts_at(memory, item_time, half_life)
    )

  def update(params, memory, inputs, pending):
    del params, inputs
    return counts.add_to_decayed_counts(memory, pending.events, half_life)

  return System('none', True, init, reset, embed, update)
