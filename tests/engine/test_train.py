"""The epoch as a whole: what it starts from, what stops it."""

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import train
from dynllm_jax.types import InputError
from tests.testing import tiny_runs
from tests.testing import variants


def prepared(**fields):
  """A tiny run, with these fields of `config.train`."""
  config = variants.tiny_config('tgn')
  config.train.update(fields)
  return tiny_runs.prepare(config)


def test_an_epoch_starts_without_memory_and_pending_events():
  """What the epoch before left behind would be the future (SPEC 4)."""
  run = prepared()
  state, _ = run.epoch(run.first_state())
  assert state.pending.events.mask.any() and (state.memory.user.time > 0).any()
  fresh = run.first_state()
  clean = jax.tree.map(lambda leaf: leaf.copy(), state).replace(
    memory=fresh.memory, pending=fresh.pending
  )
  (after, _), (after_clean, _) = run.epoch(state), run.epoch(clean)
  variants.assert_trees_equal(after.params, after_clean.params)


def test_a_loss_that_is_not_finite_stops_the_run():
  run = prepared()
  state = run.first_state()
  broken = jax.tree.map(lambda leaf: leaf * np.nan, state.params)
  with pytest.raises(InputError, match='train.learning_rate.*loss nan'):
    run.epoch(state.replace(params=broken))


def test_the_power_of_the_softmax_reaches_the_loss():
  fields = {'loss': 'softmax', 'num_negatives': 8}
  run = prepared(softmax_power=1.0, **fields)
  assert run.epoch(run.first_state())[1]['loss'] < 1.0  # 1 - p of each event
  run = prepared(**fields)
  assert run.epoch(run.first_state())[1]['loss'] > 1.0


@pytest.mark.parametrize(
  'field, value',
  [
    ('loss', 'hinge'),
    ('negatives', 'hard'),
    ('negatives', 'batch'),  # of the softmax alone
    ('num_negatives', 0),
    ('num_epochs', -1),
    ('learning_rate', float('nan')),
    ('patience', 0),
    ('final_learning_rate', 2.0),
    ('warmup_steps', -1),
    ('margin', 0.0),
    ('softmax_power', 1.5),
    ('max_gradient_norm', 0.0),
    ('max_time_gradient_norm', -1.0),
    ('regularization', -1.0),
    ('chunk', 0),
  ],
)
def test_a_field_that_is_not_allowed_is_named(field, value):
  with pytest.raises(InputError, match=f'config.train.{field}: .*allowed: '):
    prepared(**{field: value})


@pytest.mark.parametrize(
  'given, steps, expected',
  [(7, 1, 7), (0, 253, 3), (0, 47, 3), (0, 46, 4), (0, 14, 10), (0, 1, 30)],
)
def test_a_short_log_has_more_epochs_where_none_are_given(
  given, steps, expected
):
  config = config_lib.default('tgn+counts').train
  assert config.num_epochs == 0
  assert config.patience >= train.num_epochs(config, 1)  # all are run
  config.num_epochs = given
  assert train.num_epochs(config, steps) == expected
