"""Intervals and p values against plain readings of the bootstrap."""

import math

import numpy as np
import pytest

from dynllm_jax.engine import significance


def test_gains_are_what_each_event_adds():
  ranks = np.array([1, 2.5, 10, 11])
  np.testing.assert_array_equal(
    significance.gains(ranks, 'recall@10'), [1, 1, 1, 0]
  )
  np.testing.assert_allclose(
    significance.gains(ranks, 'ndcg@10'),
    [1, 1 / math.log2(3.5), 1 / math.log2(11), 0],
  )
  np.testing.assert_allclose(
    significance.gains(ranks, 'mrr'), [1, 1 / 2.5, 1 / 10, 1 / 11]
  )


def test_an_interval_is_that_of_resampled_users():
  """With an event a user, the standard error of a share is known."""
  rng = np.random.default_rng(0)
  values = (rng.random(4_000) < 0.3).astype(float)
  low, high = significance.interval(values, np.arange(4_000))
  share = values.mean()
  error = math.sqrt(share * (1 - share) / 4_000)
  assert low == pytest.approx(share - 1.96 * error, abs=error / 3)
  assert high == pytest.approx(share + 1.96 * error, abs=error / 3)


def test_events_of_one_user_count_as_one_observation():
  values = np.tile([0.0, 1.0], 50)
  users = np.tile([1, 2], 50)  # all of user 1 miss, all of user 2 hit
  assert significance.interval(values, users) == (0.0, 1.0)


def test_p_of_equal_and_of_better_systems():
  rng = np.random.default_rng(1)
  users = rng.integers(0, 300, 3_000)
  values = rng.random(3_000)
  assert significance.p_value(values, values, users) == 1
  better = values + 0.5
  assert significance.p_value(better, values, users) == (significance.SMALLEST)
  noise = values + rng.normal(size=3_000)
  assert significance.p_value(noise, values, users) > 0.01
