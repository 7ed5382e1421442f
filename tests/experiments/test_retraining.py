"""Systems that are trained again before each part of validation and test."""

import dataclasses

import numpy as np
import pytest

from dynllm_jax.types import InputError
from experiments import retraining
from tests.testing import logs
from tests.testing import variants

LOG = logs.random_log(
  0, num_users=12, num_items=15, num_events=200, num_times=60
)


def test_parts_are_the_later_splits_cut_between_times():
  parts = list(retraining.parts_of(LOG, 3))
  assert [p.split for p in parts] == ['validation'] * 3 + ['test'] * 3
  assert parts[0].start == LOG.train_end and parts[-1].end == LOG.num_events
  assert parts[2].end == LOG.validation_end
  for before, after in zip(parts, parts[1:]):
    assert before.start < before.end == after.start
    assert LOG.times[after.start - 1] < LOG.times[after.start]
  one_time = logs.make_log(
    [1] * 20, range(1, 21), [*range(14), *[20] * 3, *[30] * 3]
  )
  assert len(list(retraining.parts_of(one_time, 3))) == 2


@pytest.mark.slow
def test_a_later_part_is_ranked_after_training_on_what_is_past():
  config = variants.tiny_config('ease')
  frozen = retraining.rank_in_parts(config, LOG, 1, 0)
  again = retraining.rank_in_parts(config, LOG, 1, 1)
  assert again['validation'] == frozen['validation']

  # Before the test split, training has become all that is earlier: its figures
  # are those of a log whose validation split it is.
  end = int(np.searchsorted(LOG.times, LOG.times[-1]))
  moved = dataclasses.replace(
    LOG, train_end=LOG.validation_end, validation_end=end
  )
  alone = retraining.rank_in_parts(config, moved, 1, 0)
  total = alone['validation']['events'] + alone['test']['events']
  assert total == again['test']['events']
  hits = sum(
    alone[split]['events'] * alone[split]['recall@5'] for split in alone
  )
  assert hits == pytest.approx(total * again['test']['recall@5'])
  assert again['test'] != frozen['test']
  assert np.isfinite(again['test']['mrr'])


def test_a_system_with_a_memory_is_refused():
  with pytest.raises(InputError, match="'jodie' has a memory"):
    retraining.rank_in_parts(variants.tiny_config('jodie'), LOG, 1, 1)
