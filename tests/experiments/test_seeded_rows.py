"""Runs of several seeds: their figures, and tests between them."""

import numpy as np
import pytest

from experiments import seeded_rows

USERS = np.repeat(np.arange(40), 5)


def row(choice, seed, recall):
  """A finished row."""
  test = {'recall@10': recall, 'ndcg@10': recall / 2, 'mrr': recall / 4}
  groups = {
    'new_user': {'events': 7, 'recall@10': recall},
    'new_item': {'events': 0},
  }
  return {
    'key': f'{choice}-{seed}',
    'seed': seed,
    'test': {**test, 'groups': groups},
    'validation': {'recall@10': recall + 0.01},
  }


def ranks_of(found):
  """Ranks of 200 test events: those of `good` rows are 1, of others 20."""
  good = found['key'].startswith('good')
  return np.full(len(USERS), 1.0 if good else 20.0), USERS


def test_figures_are_means_and_spreads_over_seeds():
  found = seeded_rows.figures([row('a', 0, 0.1), row('a', 1, 0.3)])
  assert found['seeds'] == [0, 1]
  assert found['mean']['recall@10'] == pytest.approx(0.2)
  assert found['spread']['recall@10'] == pytest.approx(0.1 * 2**0.5)
  assert found['mean']['new_item'] == 0  # a group without events
  heads, cells = seeded_rows.heads(row('a', 0, 0.1)), seeded_rows.cells(found)
  assert dict(zip(heads, cells))['new user (7), R@10'] == '.2000 ± .1414'


def test_the_seeds_that_both_have_are_compared():
  ours = [row('good', seed, 0.2) for seed in range(3)]
  theirs = [row('bad', 0, 0.1)]
  found = seeded_rows.compare(ours, theirs, 'recall@10', ranks_of)
  assert (found['seeds'], found['difference']) == (1, 1.0)
  assert found['p'] < 0.01
  same = seeded_rows.compare(ours, ours, 'recall@10', ranks_of)
  assert (same['difference'], same['p']) == (0, 1)
