"""Blend: counts alone, with learned weights (SPEC 6)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.graph import online_counts
from dynllm_jax.layers.count_terms import CountTerms
from dynllm_jax.types import Array
from dynllm_jax.types import Counts
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The setting of SPEC 6."""
  return ml_collections.ConfigDict(
    {
      'count_depth': 20,  # the user's last events whose successors are read
      # Successors kept of an item; 0: all of a small catalogue (successors.py).
      'count_successors': 0,
    }
  )


def default_train() -> dict[str, Any]:
  """Softmax against many negatives: there are only a few weights to learn."""
  return {
    'loss': 'softmax',
    'num_negatives': 1024,
    'batch_size': 256,
    'learning_rate': 0.01,
    'num_epochs': 3,
    'final_learning_rate': 0.05,
  }


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  checks.check(
    'config.model',
    config,
    [checks.at_least('count_depth', 1), checks.at_least('count_successors', 0)],
  )
  depth, num_kept = config.count_depth, config.count_successors
  network = CountTerms(depth)

  def init(
    key: jax.Array, inputs: Inputs, capacity: int
  ) -> tuple[Params, Counts]:
    del capacity
    counts = online_counts.empty(inputs.num_items, num_kept)
    nobody = jnp.zeros([1], jnp.int32)
    params = network.init(
      key, counts, inputs, nobody, nobody, nobody, nobody[0]
    )
    return params['params'], counts

  def embed(
    params: Params,
    memory: Counts,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del key
    terms: Any = network.apply(
      {'params': params}, memory, inputs, users, user_times, items, item_time
    )
    return UserEmbeddings(
      vector=jnp.zeros([len(users), 1]), counts=terms[0]
    ), ItemEmbeddings(items, jnp.zeros([len(items), 1]), column=terms[1])

  def update(
    params: Params, memory: Counts, inputs: Inputs, pending: Pending
  ) -> Counts:
    del params
    return online_counts.add(memory, inputs.user_graph, pending.events, depth)

  return System(
    feed='stream',
    by_time=False,
    init=init,
    reset=online_counts.reset,
    embed=embed,
    update=update,
    learns_quickly=True,
  )
