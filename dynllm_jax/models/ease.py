"""EASE (Steck 2019, arXiv 1905.03375): a linear autoencoder in closed form.

With X the binary matrix of training's users and items and B zero on its
diagonal, `min |X - X B|^2 + lambda |B|^2` has the solution (eq. 8)

    P = (X'X + lambda I)^-1,    B_ij = -P_ij / P_jj,    B_jj = 0

and the score of an item j is `X_u. B_.j` (eq. 2). The paper's X_u is the user's
row of training; here it is all that the user took strictly earlier than the
query, each item once, so that what was taken since training counts as well. B
stays as training has left it. A small share of recent popularity orders what
nothing is known of, as in the other count-based systems of SPEC 6.

Computed in float32 by Cholesky's factorization: X'X + lambda I is positive
definite, and lambda keeps its condition small.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import counting_system
from dynllm_jax.bases import counts
from dynllm_jax.bases import item_pairs
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


class EaseMemory(NamedTuple):
  """The weights, which stay, and recent popularity."""

  weights: Array  # f32[items + 1, items + 1], B, 0 on the diagonal
  recent: counts.DecayedCounts


def default_config() -> ml_collections.ConfigDict:
  """A penalty amid the paper's, which are 200 to 1,000 by log."""
  return ml_collections.ConfigDict(
    {
      'penalty': 500.0,  # lambda
      'popularity_weight': 1e-9,
      'half_life_days': 30.0,
      'max_table_gib': 6.0,  # of B; solving takes three tables of its size
    }
  )


def item_weights(inputs: Inputs, penalty: float) -> Array:
  """B, from the training split.

  Args:
    inputs: whose first `train_events` events are read.
    penalty: lambda.

  Returns:
    f32[items + 1, items + 1]; an item without a training event has a row and a
    column of zeros.
  """
  both, takers = item_pairs.count_takers(inputs)
  place = jnp.arange(len(takers))
  gram = both.at[place, place].set(takers + penalty)
  factor = jax.scipy.linalg.cho_factor(gram, lower=True)
  inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(len(takers)))
  weights = -inverse / jnp.diagonal(inverse)
  return weights.at[place, place].set(0.0)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  Raises:
    InputError: if penalty or half-life are not above 0; `init` also if the
      table is larger than `max_table_gib`.
  """
  counts.check_positive(config, 'penalty', 'half_life_days')
  half_life = config.half_life_days

  def init(inputs: Inputs) -> EaseMemory:
    counts.check_table(inputs.num_items, config.max_table_gib)
    return EaseMemory(
      item_weights(inputs, config.penalty),
      counts.no_decayed_counts(inputs.num_items),
    )

  def reset(memory: EaseMemory) -> EaseMemory:
    return memory._replace(recent=counts.reset_decayed_counts(memory.recent))

  def embed(
    memory: EaseMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    scores = counts.sum_of_taken(
      memory.weights, inputs.user_graph, users, user_times
    )
    recent = counts.decayed_counts_at(memory.recent, item_time, half_life)
    return counts.embeddings(
      users, items, scores + config.popularity_weight * recent
    )

  def update(
    memory: EaseMemory, inputs: Inputs, events: EventBatch
  ) -> EaseMemory:
    del inputs
    return memory._replace(
      recent=counts.add_to_decayed_counts(memory.recent, events, half_life)
    )

  return counting_system.build(init, reset, embed, update)
