"""Verdicts from ranks whose answer is known."""

import numpy as np
import pytest

from dynllm_jax.engine import significance
from dynllm_jax.runs import verdict

USERS = np.repeat(np.arange(200), 5)


def ranks(share, seed):
  """Ranks of which so many are in the first ten."""
  rng = np.random.default_rng(seed)
  return np.where(rng.random(len(USERS)) < share, 3.0, 50.5)


@pytest.mark.parametrize(
  'own, floor, says',
  [(0.6, 0.3, 'ahead'), (0.3, 0.6, 'behind'), (0.4, 0.4, 'level')],
)
def test_a_system_is_judged_against_the_best_floor(own, floor, says):
  found = verdict.compare(
    {'ours': ranks(own, 0), 'low': ranks(0.1, 1), 'high': ranks(floor, 2)},
    USERS,
    ['recall@20', 'mrr'],
  )
  told = found['verdict']
  assert told['says'] == says and told['rival'] == 'high'
  assert told['value'] == np.mean(ranks(own, 0) <= 10)
  low, high = told['interval']
  assert low < told['difference'] < high
  assert (low <= 0 <= high) == (says == 'level')
  # The same draws as for one system alone.
  gains = significance.gains(ranks(own, 0), 'mrr')
  assert found['intervals']['ours']['mrr'] == list(
    significance.interval(gains, USERS)
  )
  words = verdict.in_words(told)
  assert 'high' in words and f'{told["value"]:.4f}' in words


def test_without_a_floor_there_is_no_verdict():
  found = verdict.compare({'ours': ranks(0.5, 0)}, USERS, ['mrr'])
  assert found['verdict'] is None
  assert set(found['intervals']['ours']) == {'mrr', 'recall@10'}


def test_floors_that_find_nothing_have_no_ratio():
  none = np.full(len(USERS), 99.0)
  told = verdict.compare({'ours': none, 'floor': none}, USERS, [])['verdict']
  assert told['ratio'] is None and told['p'] == 1
  assert 'cannot be told from' in verdict.in_words(told)
