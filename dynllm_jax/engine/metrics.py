"""Metrics of ranks and the groups of events that they are taken over (SPEC 5).

All in float64, on the host.
"""

from collections.abc import Sequence

import numpy as np

from dynllm_jax.types import EventLog


def recall_at_k(ranks: np.ndarray, k: int) -> float:
  """Recall@K = mean [rank <= K], of f[events] ranks from 1."""
  return float(np.mean(np.asarray(ranks) <= k))


def ndcg_at_k(ranks: np.ndarray, k: int) -> float:
  """NDCG@K = mean [rank <= K] / log2(1 + rank), of f[events] ranks from 1."""
  ranks = np.asarray(ranks, np.float64)
  return float(np.mean((ranks <= k) / np.log2(1 + ranks)))


def precision_at_k(ranks: np.ndarray, k: int) -> float:
  """Precision@K = Recall@K / K, as an event has one relevant item."""
  return recall_at_k(ranks, k) / k


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
  """MRR = mean 1 / rank, of f[events] ranks from 1."""
  return float(np.mean(1 / np.asarray(ranks, np.float64)))


def summary(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
  """All metrics of a set of ranks; without an event only the count.

  Args:
    ranks: f[events], 1 + rivals above + rivals level / 2.
    ks: cut-offs.

  Returns:
    `events`, `recall@k`, `ndcg@k`, `precision@k` for each k, and `mrr`.
  """
  result: dict[str, float] = {'events': len(ranks)}
  if not len(ranks):
    return result
  for k in ks:
    result[f'recall@{k}'] = recall_at_k(ranks, k)
    result[f'ndcg@{k}'] = ndcg_at_k(ranks, k)
    result[f'precision@{k}'] = precision_at_k(ranks, k)
  result['mrr'] = mean_reciprocal_rank(ranks)
  return result


def event_groups(log: EventLog) -> dict[str, np.ndarray]:
  """bool[events] of the groups that a report tells apart (SPEC 5).

  new_user, new_item: no training event. repeat: the user took the item at an
  earlier time. head: the fifth of the items with most training events; tail:
  the others.
  """
  train = slice(0, log.train_end)
  by_item = np.bincount(log.items[train], minlength=log.num_items + 1)
  by_user = np.bincount(log.users[train], minlength=log.num_users + 1)

  # np.unique keeps the first place of each pair, the earliest in time.
  pair = log.users.astype(np.int64) * (log.num_items + 1) + log.items
  _, first, of = np.unique(pair, return_index=True, return_inverse=True)

  head = np.zeros(log.num_items + 1, bool)
  head[1 + np.argsort(-by_item[1:], kind='stable')[: log.num_items // 5]] = True
  return {
    'new_user': by_user[log.users] == 0,
    'new_item': by_item[log.items] == 0,
    'repeat': log.times[first][of] < log.times,
    'head': head[log.items],
    'tail': ~head[log.items],
  }
