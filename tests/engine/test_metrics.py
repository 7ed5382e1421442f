"""Metrics against the arithmetic of SPEC 5."""

import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dynllm_jax.engine import metrics

RANKS = np.array([1, 2, 10, 11, 1.5, 40])


def test_recall_at_k():
  assert metrics.recall_at_k(RANKS, 1) == 1 / 6
  assert metrics.recall_at_k(RANKS, 10) == 4 / 6
  assert metrics.recall_at_k(RANKS, 40) == 1.0


def test_ndcg_at_k():
  assert metrics.ndcg_at_k(RANKS, 10) == pytest.approx(
    (
      1 / math.log2(1 + 1)
      + 1 / math.log2(1 + 2)
      + 1 / math.log2(1 + 10)
      + 1 / math.log2(1 + 1.5)
    )
    / 6,
    rel=1e-15,
  )
  assert metrics.ndcg_at_k(np.array([1]), 10) == 1.0
  assert metrics.ndcg_at_k(np.array([2]), 1) == 0.0


def test_precision_at_k():
  assert metrics.precision_at_k(RANKS, 10) == 4 / 6 / 10


def test_mean_reciprocal_rank():
  assert metrics.mean_reciprocal_rank(RANKS) == pytest.approx(
    (1 / 1 + 1 / 2 + 1 / 10 + 1 / 11 + 1 / 1.5 + 1 / 40) / 6, rel=1e-15
  )


def test_a_half_rank_misses_the_cut_it_is_past():
  # Level with one rival at the cut: 10.5 is not within 10.
  assert metrics.recall_at_k(np.array([10.0, 10.5]), 10) == 1 / 2


def test_means_are_taken_in_float64():
  # In float32 a running sum of 1 / 3 would drift by some 1e-4 over so many.
  ranks = np.full(300_000, 3, np.float32)
  assert metrics.mean_reciprocal_rank(ranks) == pytest.approx(1 / 3, rel=1e-12)
  assert metrics.ndcg_at_k(ranks - 1, 5) == pytest.approx(
    1 / math.log2(1 + 2), rel=1e-12
  )
  recall = metrics.recall_at_k(np.array([1, 5, 5], np.float32), 1)
  assert recall == 1 / 3


def test_summary_has_every_metric():
  found = metrics.summary(RANKS, [10, 20])
  assert found == {
    'events': 6,
    'recall@10': 4 / 6,
    'ndcg@10': metrics.ndcg_at_k(RANKS, 10),
    'precision@10': 4 / 6 / 10,
    'recall@20': 5 / 6,
    'ndcg@20': metrics.ndcg_at_k(RANKS, 20),
    'precision@20': 5 / 6 / 20,
    'mrr': metrics.mean_reciprocal_rank(RANKS),
  }


def test_summary_of_no_event_is_a_count():
  assert metrics.summary(np.zeros(0), [10]) == {'events': 0}


@given(
  st.lists(st.integers(2, 80).map(lambda half: half / 2), min_size=1),
  st.integers(1, 30),
)
def test_metrics_are_means_over_events(ranks, k):
  inside = [rank <= k for rank in ranks]
  count = len(ranks)
  found = metrics.summary(np.array(ranks), [k])
  assert found[f'recall@{k}'] == pytest.approx(sum(inside) / count)
  assert found[f'precision@{k}'] == pytest.approx(sum(inside) / count / k)
  assert found[f'ndcg@{k}'] == pytest.approx(
    sum(hit / math.log2(1 + rank) for hit, rank in zip(inside, ranks)) / count
  )
  assert found['mrr'] == pytest.approx(sum(1 / r for r in ranks) / count)
