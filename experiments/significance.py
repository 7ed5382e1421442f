"""Intervals and significance from the ranks of single events."""

import numpy as np

RESAMPLES = 1_000
SMALLEST = 2 / (RESAMPLES + 1)  # the smallest p that the resamples can show
_BLOCK = 1 << 24  # numbers drawn at once, which bounds the memory


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

  Whole users are drawn, each with all their events. The events of one user
  are alike, so an interval from single events would be too narrow.

  Args:
    values: f64[events].
    users: i32[events].
    seed: of the resampling.

  Returns:
    The 2.5th and the 97.5th percentile of the resampled means.
  """
  means = _resampled_means(values, users, seed)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def p_value(
  values: np.ndarray, rival: np.ndarray, users: np.ndarray, seed: int = 0
) -> float:
  """Two-sided p that two systems do equally well on the same events.

  The mean difference is bootstrapped over users. p is twice the share of
  resamples in which the other system is ahead or level. One more of them is
  counted, the usual correction for finitely many, so that p is never 0 but
  `SMALLEST` at least.

  Args:
    values, rival: f64[events], the gains of each system, event by event.
    users: i32[events].
    seed: of the resampling.

  Returns:
    p, at most 1.
  """
  means = _resampled_means(values - rival, users, seed)
  side = min(np.sum(means <= 0), np.sum(means >= 0))
  return float(min(1.0, SMALLEST * (1 + side)))


def _resampled_means(
  values: np.ndarray, users: np.ndarray, seed: int
) -> np.ndarray:
  """f64[RESAMPLES] means over events, users drawn with replacement."""
  _, owner = np.unique(users, return_inverse=True)
  sums = np.bincount(owner, weights=values)
  counts = np.bincount(owner).astype(np.float64)

  # How often each user is drawn, rather than who: sums are then products.
  rng = np.random.default_rng(seed)
  share = np.full(len(sums), 1 / len(sums))
  means, at_once = [], max(1, _BLOCK // len(sums))
  for first in range(0, RESAMPLES, at_once):
    draws = rng.multinomial(
      len(sums), share, size=min(at_once, RESAMPLES - first)
    )
    means.append((draws @ sums) / (draws @ counts))
  return np.concatenate(means)
