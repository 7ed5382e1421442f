"""Figures of runs that differ in their seed alone, and tests between them."""

from collections.abc import Callable
from collections.abc import Sequence
import statistics
from typing import Any

import numpy as np

from dynllm_jax.engine import significance
from dynllm_jax.types import InputError
from experiments import pages
from experiments import result_rows
from experiments.result_rows import Log
from experiments.result_rows import Row

METRICS = ('recall@10', 'ndcg@10')  # that are tested
_GROUPS = ('new_user', 'new_item')
_NAMES = ('validation recall@10', *METRICS, 'mrr', *_GROUPS)

# Of a row: ranks of its test events, f64[events], and their users, i32[events].
Ranks = Callable[[Row], tuple[np.ndarray, np.ndarray]]


def figures(rows: Sequence[Row]) -> dict[str, Any]:
  """Means and standard deviations over seeds.

  Args:
    rows: a row a seed.

  Returns:
    `seeds`, and by name of a figure `mean` and `spread`.
  """
  values = {
    name: [row['test'][name] for row in rows] for name in (*METRICS, 'mrr')
  }
  values['validation recall@10'] = [
    row['validation']['recall@10'] for row in rows
  ]
  for group in _GROUPS:
    values[group] = [
      row['test']['groups'][group].get('recall@10', 0.0) for row in rows
    ]
  return {
    'seeds': [row['seed'] for row in rows],
    'mean': {name: statistics.fmean(v) for name, v in values.items()},
    'spread': {
      name: statistics.stdev(v) if len(v) > 1 else 0.0
      for name, v in values.items()
    },
  }


def heads(row: Row) -> list[str]:
  """Heads of the columns of `cells`, given any row of the log."""
  sizes = {g: row['test']['groups'][g]['events'] for g in _GROUPS}
  return [
    f'{n.replace("_", " ")} ({sizes[n]:,}), R@10' if n in sizes else n
    for n in _NAMES
  ]


def cells(found: dict[str, Any]) -> list[str]:
  """What `figures` has found, a cell a figure."""
  return [
    f'{pages.digits(found["mean"][n])} ± {pages.digits(found["spread"][n])}'
    for n in _NAMES
  ]


def compare(
  ours: Sequence[Row], theirs: Sequence[Row], metric: str, ranks: Ranks
) -> dict[str, Any]:
  """A paired bootstrap over users, of the seeds that both have.

  Args:
    ours, theirs: a row a seed, at least one each.
    metric: of METRICS.
    ranks: of a row.

  Returns:
    The difference with its interval and p. An event's gain is its mean over the
    seeds.
  """
  seeds = min(len(ours), len(theirs))
  columns = []
  for rows in (ours, theirs):
    read = [ranks(row) for row in rows[:seeds]]
    columns.append(
      np.mean([significance.gains(r, metric) for r, _ in read], axis=0)
    )
  users, change = read[0][1], columns[0] - columns[1]
  return {
    'metric': metric,
    'seeds': seeds,
    'difference': float(change.mean()),
    'interval': significance.interval(change, users),
    'p': significance.p_value(*columns, users),
  }


COMPARED = ('metric', 'seeds', 'difference', '95 %', 'p')


def compared(found: dict[str, Any]) -> list[Any]:
  """What `compare` has found, a cell for each of COMPARED."""
  return [
    found['metric'],
    found['seeds'],
    f'{found["difference"]:+.4f}',
    ' to '.join(f'{end:+.4f}' for end in found['interval']),
    f'{found["p"]:.3f}',
  ]


def stored_ranks(log: Log) -> Ranks:
  """The ranks of a log's finished rows.

  Raises:
    InputError: when it is called for a row whose ranks are not here.
  """

  def ranks(row: Row) -> tuple[np.ndarray, np.ndarray]:
    arrays = result_rows.read_arrays(log, row)
    if arrays is None:
      raise InputError(
        f'{log.folder}: the ranks of {row["key"]} are not here; allowed: those '
        'that experiments.verify makes again'
      )
    return arrays.ranks, arrays.users

  return ranks
