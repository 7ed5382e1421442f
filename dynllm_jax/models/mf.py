"""BPR-MF (Rendle et al. 2009, arXiv 1205.2618): matrix factorization.

`y_ui = w_u . h_i` (eq. 6), trained with BPR-Opt on pairs of a taken item and
a sampled one; `train.regularization` is its lambda, one for all parameters.

An optimizer's step is dense: it costs as much as the tables have rows, which
for tables of one vector a node is less than a step's products. A user or an
item without a training event keeps its random vector, whose scores are near
zero.
"""

import jax
import ml_collections

from dynllm_jax.bases import counts
from dynllm_jax.bases import static_system
from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Params
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The width, and the deviation of the random vectors at the start."""
  return ml_collections.ConfigDict({'dim': 128, 'initial_deviation': 0.1})


def default_train() -> dict[str, object]:
  """The paper's objective; it prints no lambda."""
  return {'loss': 'bpr', 'num_negatives': 1, 'negatives': 'uniform'}


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system.

  Raises:
    InputError: if a field is not above 0.
  """
  counts.check_positive(config, 'dim', 'initial_deviation')

  def init(key: jax.Array, inputs: Inputs) -> Params:
    rows = {'user': inputs.num_users + 1, 'item': inputs.num_items + 1}
    return {
      side: config.initial_deviation
      * jax.random.normal(side_key, [rows[side], config.dim])
      for side, side_key in zip(rows, jax.random.split(key))
    }

  def embed(
    params: Params,
    memory: SystemMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del memory, inputs, user_times, item_time, key
    return (
      UserEmbeddings(vector=row_sums.read_rows(params['user'], users)),
      ItemEmbeddings(items, row_sums.read_rows(params['item'], items)),
    )

  return static_system.build('shuffled', init, embed)
