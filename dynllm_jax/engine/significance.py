"""Intervals and significance from the ranks of single events (SPEC 5.4).

All from one bootstrap over users: the events of one user are alike, so that
intervals from single events would be too narrow.
"""

import numpy as np

RESAMPLES = 1_000
SMALLEST = 2 / (RESAMPLES + 1)  # the smallest p that the resamples can show
_BLOCK = 1 << 22  # numbers drawn at once, which bounds the memory


def gains(ranks: np.ndarray, metric: str) -> np.ndarray:
  """What each event contributes to a metric, which is their mean (SPEC 5).

  Args:
    ranks: f[events], from 1.
    metric: `recall@K`, `ndcg@K` or `mrr`.

  Returns:
    f64[events].
  """
  ranks = np.asarray(ranks, np.float64)
  name, _, k = metric.partition('@')
  if name == 'mrr':
    return 1 / ranks
  hit = ranks <= int(k)
  return hit / np.log2(1 + ranks) if name == 'ndcg' else hit.astype(np.float64)


def interval(
  values: np.ndarray, users: np.ndarray, seed: int = 0
) -> tuple[float, float]:
  """A 95 % bootstrap interval of the mean over events.

  Args:
    values: f64[events].
    users: i32[events].
    seed: of the resampling.

  Returns:
    The 2.5th and the 97.5th percentile of the resampled means.
  """
  return middle(resampled_means([values], users, seed)[0])


def p_value(
  values: np.ndarray, rival: np.ndarray, users: np.ndarray, seed: int = 0
) -> float:
  """Two-sided p that two systems do equally well on the same events.

  Args:
    values, rival: f64[events], the gains of each system, event by event.
    users: i32[events].
    seed: of the resampling.

  Returns:
    p, as `p_of` has it.
  """
  return p_of(resampled_means([values - rival], users, seed)[0])


def resampled_means(
  columns: list[np.ndarray], users: np.ndarray, seed: int = 0
) -> list[np.ndarray]:
  """Means over events, whole users drawn with replacement.

  All columns are resampled alike, so that the difference of two results is the
  resampled mean of the difference.

  Args:
    columns: f64[events] each.
    users: i32[events].
    seed: of the resampling.

  Returns:
    f64[RESAMPLES] for each column.
  """
  _, owner = np.unique(users, return_inverse=True)
  sums = [np.bincount(owner, weights=column) for column in columns]
  counts = np.bincount(owner).astype(np.float64)

  # How often each user is drawn, rather than who: sums are then products.
  rng = np.random.default_rng(seed)
  share = np.full(len(counts), 1 / len(counts))
  means = np.empty((len(columns), RESAMPLES))
  at_once = max(1, _BLOCK // len(counts))
  for first in range(0, RESAMPLES, at_once):
    size = min(at_once, RESAMPLES - first)
    draws = rng.multinomial(len(counts), share, size=size).astype(np.float64)
    events = draws @ counts
    # One by one: the last bit of a product must not depend on its neighbors.
    for row, total in enumerate(sums):
      means[row, first : first + size] = (draws @ total) / events
  return list(means)


def middle(means: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of f64[RESAMPLES] resampled means, its two ends."""
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def p_of(differences: np.ndarray) -> float:
  """Two-sided p of f64[RESAMPLES] resampled mean differences.

  It is twice the share of resamples in which the other system is ahead or
  level. One more of them is counted, the usual correction for finitely many,
  so that p is never 0 but `SMALLEST` at least.
  """
  side = min(np.sum(differences <= 0), np.sum(differences >= 0))
  return float(min(1.0, SMALLEST * (1 + side)))
