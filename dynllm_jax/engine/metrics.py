"""Ranking metrics of SPEC 5, from ranks, in float64 on the host."""

from collections.abc import Sequence

import numpy as np


def recall_at_k(ranks: np.ndarray, k: int) -> float:
  """Recall@K = mean [rank <= K], of f[events] ranks from 1."""
  return float(np.mean(np.asarray(ranks) <= k))


def ndcg_at_k(ranks: np.ndarray, k: int) -> float:
  """NDCG@K = mean [rank <= K] / log2(1 + rank)."""
  ranks = np.asarray(ranks, np.float64)
  return float(np.mean((ranks <= k) / np.log2(1 + ranks)))


def precision_at_k(ranks: np.ndarray, k: int) -> float:
  """Precision@K = Recall@K / K: an event has one relevant item."""
  return recall_at_k(ranks, k) / k


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
  """MRR = mean 1 / rank."""
  return float(np.mean(1 / np.asarray(ranks, np.float64)))


def summary(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
  """All metrics of f[events] ranks; with no event only the count.

  Args:
    ranks: 1 + rivals above + rivals level / 2.
    ks: cut-offs.

  Returns:
    `events`, `recall@k`, `ndcg@k`, `precision@k` for each k, and `mrr`.
  """
  result = {'events': len(ranks)}
  if not len(ranks):
    return result
  for k in ks:
    result[f'recall@{k}'] = recall_at_k(ranks, k)
    result[f'ndcg@{k}'] = ndcg_at_k(ranks, k)
    result[f'precision@{k}'] = precision_at_k(ranks, k)
  result['mrr'] = mean_reciprocal_rank(ranks)
  return result
