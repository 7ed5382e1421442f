"""Leave-one-out: the last event of each user, and nothing else, is tested."""

import numpy as np
import pytest

from dynllm_jax.types import InputError
from experiments import last_events
from tests.testing import logs
from tests.testing import variants


def test_the_last_two_events_of_each_user_are_held_out():
  # User 1 has five events, two of them at one time, user 2 three, user 3 two.
  log = logs.make_log(
    [1, 2, 1, 1, 3, 2, 1, 3, 2, 1],
    [1, 2, 3, 4, 5, 6, 1, 2, 3, 4],
    [0, 1, 2, 2, 3, 4, 5, 6, 7, 8],
  )
  found = last_events.leave_one_out(log)
  assert (found.train_end, found.validation_end) == (6, 8)
  assert np.all(np.diff(found.times) >= 0)
  rows = {
    name: sorted(zip(found.users[part].tolist(), found.items[part].tolist()))
    for name, part in (
      ('train', slice(0, 6)),
      ('validation', slice(6, 8)),
      ('test', slice(8, 10)),
    )
  }
  assert rows == {
    'train': [(1, 1), (1, 3), (1, 4), (2, 2), (3, 2), (3, 5)],
    'validation': [(1, 1), (2, 6)],
    'test': [(1, 4), (2, 3)],
  }
  for user in (1, 2, 3):
    assert np.all(np.diff(found.times[found.users == user]) > 0)
    np.testing.assert_array_equal(
      found.items[found.users == user], log.items[log.users == user]
    )


@pytest.mark.slow
def test_a_system_is_trained_and_ranked():
  log = last_events.leave_one_out(
    logs.random_log(0, num_users=12, num_items=15, num_events=150)
  )
  config = variants.tiny_config('esasrec')
  config.train.num_epochs = 2
  trial = last_events.Trial(config, log)
  best = trial.fit(patience=1)
  seen, new = (trial.rank(best, 'test', choice) for choice in (False, True))
  assert seen['events'] == new['events'] == log.num_events - log.validation_end
  assert seen['recall@10'] <= new['recall@10'] <= 1


def test_a_system_without_sequences_is_refused():
  log = last_events.leave_one_out(logs.random_log(0))
  with pytest.raises(InputError, match="'mf' is fed 'shuffled'.*sequences"):
    last_events.Trial(variants.tiny_config('mf'), log)
