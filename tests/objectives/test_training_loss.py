"""Negatives that stand for the whole catalogue (SPEC 3.9)."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import negatives
from dynllm_jax.objectives import training_loss
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import UserEmbeddings
from tests.testing import logs

SIZE, EVENTS = 40, slice(20, 57)
NUM_DRAWN = 12
POWER = 0.3


def loss_of(log, limits):
  """The loss of 37 events, and the tables of users and items behind it."""
  inputs = logs.random_inputs(log, padding=SIZE)
  batch = batching.slice_batch(inputs, PlannedBatch(20, 37, 0, True), SIZE)
  rng = np.random.default_rng(0)
  users = jnp.asarray(rng.normal(size=(log.num_users + 1, 4)), jnp.float32)
  items = jnp.asarray(rng.normal(size=(log.num_items + 1, 4)), jnp.float32)
  visits = dedup.unique_visits(batch, limits.visits)

  def embed(ids, time, key):
    del time, key
    return UserEmbeddings(users[visits.users]), ItemEmbeddings(ids, items[ids])

  config = ml_collections.FrozenConfigDict(
    {
      'loss': 'softmax',
      'num_negatives': NUM_DRAWN,
      'negatives': 'batch',
      'softmax_power': POWER,
      'regularization': 0.0,
    }
  )
  found = jax.jit(
    lambda: training_loss.sampled_loss(
      config,
      embed,
      inputs,
      batch=batch,
      events=20 + jnp.arange(SIZE),
      key=jax.random.key(0),
      visit=visits.of_event,
      num_distinct=limits.items,
    )
  )()
  drawn, _ = negatives.sample_negatives(
    jax.random.split(jax.random.key(0))[0],
    inputs,
    20 + jnp.arange(SIZE),
    (NUM_DRAWN,),
    'batch',
  )
  return found, users, items, np.asarray(drawn)


@pytest.mark.parametrize('limits', [(0, 0), (64, 64)])
@pytest.mark.parametrize('num_items', [60, 5])
def test_own_items_stand_for_themselves_and_drawn_ones_for_the_rest(
  limits, num_items
):
  log = logs.random_log(3, num_users=6, num_items=num_items, num_times=20)
  found, users, items, drawn = loss_of(log, dedup.DedupLimits(*limits))
  own = np.unique(log.items[EVENTS])
  others = [item for item in drawn if item not in own]
  # Where the batch has the whole catalogue the loss is exact.
  assert bool(others) == (num_items == 60)
  share = (num_items - len(own)) / max(len(others), 1)

  total, masked = 0.0, 0
  for event in range(EVENTS.start, EVENTS.stop):
    user, item, time = (x[event] for x in (log.users, log.items, log.times))
    at_once = log.items[(log.users == user) & (log.times == time)]
    masked += len(set(at_once)) - 1
    powers = np.exp(np.asarray(items, float) @ np.asarray(users[user], float))
    rest = powers[np.setdiff1d(own, at_once)].sum()
    rest += share * powers[[i for i in others if i not in at_once]].sum()
    p = powers[item] / (powers[item] + rest)
    total += (1 - p**POWER) / POWER
  assert masked > 0
  np.testing.assert_allclose(found.total, total, rtol=1e-5)
  np.testing.assert_array_equal(
    found.item_vectors[:37], items[log.items[EVENTS]]
  )
