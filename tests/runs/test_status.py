"""What checkpoints remember of the epochs."""

import json

import pytest

from dynllm_jax.runs.status import Status


@pytest.fixture
def status():
  return Status(identity={'seed': 0}, commit='abc', parameters=7)


def add_epoch(status, recall):
  return status.add_epoch(
    {'loss': 0.5, 'seconds': 2.0}, {'recall@10': recall, 'mrr': 0.1}, 3.0
  )


def test_the_best_epoch_is_the_first_with_the_best_recall(status):
  best = [add_epoch(status, recall) for recall in (0.2, 0.1, 0.4, 0.4)]
  assert best == [True, False, True, False]
  assert (status.epochs, status.best_epoch, status.best_value) == (4, 3, 0.4)


def test_an_epoch_is_a_flat_record(status):
  add_epoch(status, 0.2)
  assert status.history == [
    {
      'epoch': 1,
      'loss': 0.5,
      'seconds': 2.0,
      'validation_seconds': 3.0,
      'validation_recall@10': 0.2,
      'validation_mrr': 0.1,
    }
  ]


def test_a_checkpoint_gives_back_what_was_stored_in_it(status):
  add_epoch(status, 0.2)
  record = json.loads(json.dumps(status.to_json()))
  assert record.keys() == {
    'identity',
    'epochs',
    'best_epoch',
    'best_value',
    'history',
    'floors',
    'floors_left_out',
    'commit',
    'parameters',
    'train_step_flops',
    'started_from',
  }
  assert Status.from_json(record) == status
  assert Status.from_json({**record, 'of_a_later_version': 1}) == status
