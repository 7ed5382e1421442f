"""Simulated logs of the size of the paper's (SPEC 2.3).

A shop of drifting tastes: users buy what their taste of the moment likes among
what is popular then, follow an item by its usual follower, and buy some things
again. Counts after preparation at 20 / 5 are exact.
"""

from typing import NamedTuple

import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.simulation import catalog as catalog_lib
from dynllm_jax.datasets.simulation import purchase_times
from dynllm_jax.datasets.simulation import purchases
from dynllm_jax.types import RawLog

_START = 1635724800  # 2021-11-01, unix seconds


class Size(NamedTuple):
  """What a simulated log must have."""

  users: int
  items: int
  events: int
  title_length: float  # characters, mean
  leaves: int  # leaf categories in each department


SIZES = {
  'tmall': Size(5_651, 10_333, 258_390, 35.51, leaves=5),
  'alibaba': Size(16_901, 30_080, 722_716, 34.22, leaves=8),
  'demo': Size(300, 400, 9_000, 35.51, leaves=2),
}


def files(data_config: ml_collections.ConfigDict) -> list[source_files.File]:
  """No file: the log is made.

  Raises:
    InputError: for an unknown size.
  """
  checks.check('config.data', data_config, [checks.one_of('size', SIZES)])
  return []


def read(data_config: ml_collections.ConfigDict) -> RawLog:
  """Makes the log of `size` and `simulation_seed`; see SIZES.

  Every user buys at least 20 distinct items, every item has at least 5
  buyers, no event occurs twice; times lie in the two years from 2021-11-01.

  Args:
    data_config: `config.data`.

  Raises:
    InputError: for an unknown size.
  """
  files(data_config)  # It checks the size.
  size = SIZES[data_config.size]

  rng = np.random.default_rng(data_config.simulation_seed)
  catalog = catalog_lib.make_catalog(
    rng, size.items, size.leaves, size.title_length
  )
  plan = purchase_times.plan_purchases(rng, size.users, size.events)
  users = np.repeat(np.arange(size.users), plan.counts)
  bought = purchases.choose_items(rng, catalog, plan)
  purchases.give_every_item_buyers(
    rng, catalog, users, bought, again=plan.again
  )

  order = np.argsort(plan.times, kind='stable')
  item_ids = _ids('item', size.items)
  return RawLog(
    users=_ids('user', size.users)[users[order]],
    items=item_ids[bought[order]],
    times=plan.times[order] + _START,
    item_ids=item_ids,
    titles=catalog.titles,
    categories=catalog.categories,
    brands=catalog.brands,
    counts={'events simulated': size.events},
    source=(
      f'simulated log {data_config.size}, seed {data_config.simulation_seed}'
    ),
    simulated=True,
  )


def _ids(kind: str, count: int) -> np.ndarray:
  return np.array([f'{kind}{n:06d}' for n in range(1, count + 1)], object)
