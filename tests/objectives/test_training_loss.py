"""The loss of a batch, by the weights of its events (SPEC 3.9)."""

import jax
import jax.numpy as jnp
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.objectives import training_loss
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import UserEmbeddings
from tests.testing import logs

LOG = logs.random_log(4, num_users=5, num_items=30)
INPUTS = logs.random_inputs(LOG)


def loss_of(events, recency_weight):
  """The loss of some events against negatives that are always the same."""
  config = config_lib.default('tgn').train
  config.update(loss='softmax', num_negatives=6, recency_weight=recency_weight)
  events = jnp.array(events)
  batch = EventBatch(
    INPUTS.users[events],
    INPUTS.items[events],
    INPUTS.times[events],
    mask=events < LOG.num_events,
  )

  def embed(items, item_time, key):
    del item_time, key
    vectors = lambda ids: jnp.sin(ids[:, None] * jnp.arange(1.0, 4.0))
    return UserEmbeddings(vectors(batch.users)), ItemEmbeddings(
      items, vectors(items)
    )

  found = training_loss.sampled_loss(
    config, embed, INPUTS, batch, events, jax.random.key(0)
  )
  return float(found.total)


@pytest.mark.parametrize('recency_weight', [0.0, 0.25, 1.0])
def test_weights_rise_in_a_line_from_the_first_event_to_the_last(
  recency_weight,
):
  last = LOG.train_end - 1
  events = [0, 3, last // 2, last]
  alone = [loss_of([event], 0.0) for event in events]
  assert len(set(alone)) == len(alone) and min(alone) > 0.1

  weights = [
    1 - recency_weight + 2 * recency_weight * event / last for event in events
  ]
  assert weights[-1] == 1 + recency_weight
  padding = LOG.num_events
  assert loss_of([*events, padding], recency_weight) == pytest.approx(
    sum(weight * loss for weight, loss in zip(weights, alone)), rel=1e-5
  )
