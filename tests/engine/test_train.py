"""The epoch as a whole: what it starts from, what stops it."""

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import train
from dynllm_jax.parallel import device_mesh
from dynllm_jax.types import InputError
from tests.testing import logs
from tests.testing import variants

BATCH = 16


def prepared(**fields):
  """A tiny trainer with its inputs, its plan and a first state."""
  config = variants.tiny_config('dynllm')
  config.train.update(fields)
  log = logs.random_log(3, num_users=12, num_items=15, num_events=150)
  system = config_lib.system_module('dynllm').build(config.model)
  inputs = logs.random_inputs(log, padding=BATCH)
  plan = batching.plan_batches(log.times, 0, log.train_end, BATCH)
  trainer = train.make_trainer(
    system, config, device_mesh.make_mesh(config), len(plan.start)
  )
  start = lambda: train.init_state(trainer, 0, inputs, plan.capacity)
  return trainer, inputs, plan, start


def epoch(trainer, inputs, plan, state):
  return train.run_epoch(
    trainer, state, inputs, plan, lambda events, loss: None
  )[0]


def test_an_epoch_starts_without_memory_and_pending_events():
  """What the epoch before left behind would be the future (SPEC 4)."""
  trainer, inputs, plan, start = prepared()
  state = epoch(trainer, inputs, plan, start())
  assert state.pending.events.mask.any() and (state.memory.user.time > 0).any()
  fresh = start()
  clean = jax.tree.map(lambda leaf: leaf.copy(), state).replace(
    memory=fresh.memory, pending=fresh.pending
  )
  for actual, expected in zip(
    jax.tree.leaves(epoch(trainer, inputs, plan, state).params),
    jax.tree.leaves(epoch(trainer, inputs, plan, clean).params),
  ):
    np.testing.assert_array_equal(actual, expected)


def test_a_loss_that_is_not_finite_stops_the_run():
  trainer, inputs, plan, start = prepared()
  state = start()
  broken = jax.tree.map(lambda leaf: leaf * np.nan, state.params)
  with pytest.raises(InputError, match='train.learning_rate.*loss nan'):
    epoch(trainer, inputs, plan, state.replace(params=broken))


@pytest.mark.parametrize(
  'field, value',
  [
    ('loss', 'hinge'),
    ('negatives', 'hard'),
    ('num_negatives', 0),
    ('num_epochs', 0),
    ('learning_rate', float('nan')),
    ('patience', 0),
    ('final_learning_rate', 2.0),
    ('warmup_steps', -1),
    ('margin', 0.0),
    ('max_gradient_norm', 0.0),
    ('max_time_gradient_norm', -1.0),
    ('regularization', -1.0),
    ('chunk', 0),
  ],
)
def test_a_field_that_is_not_allowed_is_named(field, value):
  with pytest.raises(InputError, match=f'config.train.{field}: .*allowed: '):
    prepared(**{field: value})
