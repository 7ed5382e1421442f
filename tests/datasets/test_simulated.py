"""Simulated logs have the sizes they claim (SPEC 2.3)."""

import numpy as np
import pytest

from dynllm_jax.datasets import prepare
from dynllm_jax.datasets.sources import simulated
from dynllm_jax.types import InputError


def pytest_generate_tests(metafunc):
  if 'size' in metafunc.fixturenames:
    every = metafunc.config.getoption('all_combinations')
    largest = ['alibaba'] if every else []
    metafunc.parametrize('size', ['demo', 'tmall', *largest])


@pytest.mark.slow
def test_counts_are_exact(make_config, size):
  config = make_config(
    source='simulated', size=size, min_user_items=20, min_item_users=5
  )
  raw = simulated.read(config)
  log = prepare.prepare(raw, config)
  wanted = simulated.SIZES[size]
  assert log.num_users == wanted.users
  assert log.num_items == wanted.items
  assert log.num_events == wanted.events == len(raw.users)
  assert log.counts['exact duplicates dropped'] == 0
  assert (
    abs(np.mean([len(t) for t in log.titles[1:]]) - wanted.title_length) < 0.5
  )
  assert all(' > ' in text for text in log.categories[1:])
  assert all(log.brands[1:])
  assert raw.times.min() >= 1635724800  # 2021-11-01
  assert raw.times.max() < 1698796800  # 2023-11-01
  assert raw.times.max() - raw.times.min() > 700 * 86_400
  assert log.simulated and log.source.startswith('simulated')


def test_the_papers_sizes():
  assert simulated.SIZES['tmall'][:4] == (5_651, 10_333, 258_390, 35.51)
  assert simulated.SIZES['alibaba'][:4] == (16_901, 30_080, 722_716, 34.22)


def test_the_seed_decides(make_config):
  first, same, other = (
    simulated.read(make_config(simulation_seed=seed)) for seed in (3, 3, 4)
  )
  for field in ('users', 'items', 'times', 'titles', 'brands', 'categories'):
    assert np.array_equal(getattr(first, field), getattr(same, field))
  assert not np.array_equal(first.items, other.items)


@pytest.mark.parametrize('seed', range(8))
def test_every_seed_has_the_counts(make_config, seed):
  config = make_config(
    simulation_seed=seed, min_user_items=20, min_item_users=5
  )
  log = prepare.prepare(simulated.read(config), config)
  assert (log.num_users, log.num_items, log.num_events) == (300, 400, 9_000)


def test_there_is_something_to_learn(make_config):
  log = prepare.prepare(
    simulated.read(make_config(size='tmall')), make_config()
  )
  popularity = np.sort(np.bincount(log.items)[1:])[::-1]
  # Skewed, but no handful of items is everything.
  assert 0.2 < popularity[:1033].sum() / log.num_events < 0.8
  pairs = log.users.astype(np.int64) * (log.num_items + 1) + log.items
  bought_again = 1 - len(np.unique(pairs)) / log.num_events
  assert 0.05 < bought_again < 0.2
  # A user's purchases keep to fewer categories than everybody's.
  category = np.unique(log.categories[log.items], return_inverse=True)[1]
  share = np.bincount(category) / log.num_events
  at_random = (share**2).sum()
  counts = np.zeros((log.num_users + 1, len(share)))
  np.add.at(counts, (log.users, category), 1)
  own = ((counts[1:] / counts[1:].sum(1, keepdims=True)) ** 2).sum(1).mean()
  assert own > 2 * at_random


def test_unknown_size(make_config):
  with pytest.raises(InputError, match="'huge'.*tmall, alibaba, demo"):
    simulated.read(make_config(size='huge'))
