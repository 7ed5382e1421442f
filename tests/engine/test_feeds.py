"""Feeds: what an epoch takes, in which order, and how it is cut."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import feeds
from dynllm_jax.types import InputError
from tests.testing import logs
from tests.testing import variants


def system(feed, length=0):
  return types.SimpleNamespace(feed=feed, sequence_length=length)


def log_of(seed):
  return logs.random_log(
    seed, num_users=5, num_items=9, num_events=120, num_times=30
  )


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('length', [1, 2, 5, 40])
def test_sequences_hold_every_training_event_once(seed, length):
  log = log_of(seed)
  table = feeds.sequence_table(log, length)
  assert table.shape[1] == length
  assert sorted(table[table >= 0]) == list(range(log.train_end))
  split = 0
  for row in table:
    real = row[row >= 0]
    assert len(real) and (row[len(real) :] == -1).all()
    assert len(set(log.users[real])) == 1
    assert (np.diff(real) > 0).all()
    # `length` inputs reach every target's last strictly earlier event.
    own = np.flatnonzero(log.users == log.users[real[0]])
    earlier = [np.sum(log.times[own] < log.times[k]) for k in real]
    assert earlier[-1] - length < max(earlier[0], 1)
    split += len(set(log.times[real])) < len(set(log.times[own]))
  assert split or length == 40


def test_a_sequence_ends_with_a_group_of_equal_times():
  times = [0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4]
  log = logs.make_log([1] * 20, [1] * 20, times + [9] * 8)
  table = feeds.sequence_table(log, 4)
  assert log.train_end == 12
  np.testing.assert_array_equal(
    table,
    [
      [0, 1, 2, 3],
      [4, 5, -1, -1],
      [6, 7, 8, 9],
      [10, -1, -1, -1],
      [11, -1, -1, -1],
    ],
  )


@pytest.mark.parametrize('feed', ['shuffled', 'sequences'])
def test_an_epoch_takes_everything_once_in_an_order_of_its_own(feed):
  log = log_of(0)
  inputs = logs.random_inputs(log)
  plan = feeds.training_plan(system(feed, 3), log, 7)
  assert plan.capacity == 1
  assert plan.batches.size.sum() == len(plan.events)
  orders = []
  for step in (0, 1, 0):
    order = feeds.epoch_order(plan, jax.random.key(5), jnp.int32(step))
    orders.append(np.asarray(order))
    taken = []
    data = feeds.EpochData(inputs, order, 7)
    for planned in plan.batches:
      batch, events = feeds.read_batch(data, planned)
      assert batch.mask.shape == ((7,) if feed == 'shuffled' else (7, 3))
      for name in ('users', 'items', 'times'):
        np.testing.assert_array_equal(
          getattr(batch, name),
          np.where(batch.mask, getattr(log, name)[events], 0),
        )
      taken += np.asarray(events)[np.asarray(batch.mask)].tolist()
    assert sorted(taken) == list(range(log.train_end))
    assert taken != sorted(taken)
  assert not np.array_equal(orders[0], orders[1])
  np.testing.assert_array_equal(orders[0], orders[2])


@pytest.mark.parametrize('feed', ['stream', 'none'])
def test_a_stream_keeps_the_order_of_the_log(feed):
  log = log_of(1)
  plan = feeds.training_plan(system(feed), log, 8)
  expected = batching.plan_batches(log.times, 0, log.train_end, 8)
  assert plan.num_parts == expected.num_parts and plan.events is None
  jax.tree.map(np.testing.assert_array_equal, plan.batches, expected.batches)
  assert plan.capacity == 8 * plan.num_parts
  assert feeds.epoch_order(plan, jax.random.key(0), 0) is None


def test_a_feed_that_there_is_not_is_refused():
  with pytest.raises(InputError, match="System.feed: 'Stream' .*stream, shuf"):
    feeds.training_plan(system('Stream'), log_of(1), 8)


def test_what_a_paper_prescribes_stands_before_a_file_s_choice():
  config = config_lib.default('mf')
  config_lib.set_train(config, loss='softmax', num_negatives=9, patience=7)
  assert (config.train.loss, config.train.num_negatives) == ('bpr', 1)
  assert config.train.patience == 7
  config = config_lib.default('dynllm')
  config_lib.set_train(config, loss='softmax', num_negatives=9)
  assert (config.train.loss, config.train.num_negatives) == ('softmax', 9)
  assert variants.tiny_config('mf').train.loss == 'bpr'
