"""The page of a study of settings: seeds, floors, and paired tests."""

from collections.abc import Iterable
from collections.abc import Sequence
import itertools
import statistics
from typing import Any

import numpy as np

from dynllm_jax.engine import significance
from dynllm_jax.types import InputError
from experiments import pages

Record = dict[str, Any]  # of a finished run (side_by_side.py)
Arrays = dict[str, np.ndarray]

_METRICS = ('recall@10', 'ndcg@10', 'mrr')
# What the runs of one table share.
_SHARED = ('fingerprint', 'split', 'filter_seen', 'facets')


def page(
  records: Sequence[Record], arrays: Arrays, pairs: Sequence[Sequence[str]]
) -> list[str]:
  """The lines of the page.

  Args:
    records: of finished runs.
    arrays: their ranks and users, as `side_by_side.finished` has them.
    pairs: labels of settings that are tested against each other.

  Raises:
    InputError: if the runs of a log cannot stand in one table.
  """
  lines = ['# Settings side by side', '']
  by_log = lambda record: record['log']
  for log, group in itertools.groupby(sorted(records, key=by_log), by_log):
    lines += _of_log(log, list(group), arrays, pairs)
  return lines


def _of_log(
  log: str,
  records: list[Record],
  arrays: Arrays,
  pairs: Sequence[Sequence[str]],
) -> list[str]:
  """The part of one log."""
  first = records[0]
  for record, name in itertools.product(records, _SHARED):
    if record[name] != first[name]:
      raise InputError(
        f'{log}: {record["key"]} and {first["key"]} differ in {name}, '
        f'{record[name]!r} and {first[name]!r}; allowed: runs that can stand '
        'in one table'
      )

  settings: dict[str, list[Record]] = {}
  for record in sorted(records, key=lambda record: record['seed']):
    settings.setdefault(record['label'], []).append(record)
  kind = 'Simulated log' if first['simulated'] else 'Log'
  return [
    f'## {log}',
    '',
    f'{kind}: {first["source"]}; events '
    f'{" / ".join(f"{n:,}" for n in first["split"])}. Seen items are '
    f'{"left out" if first["filter_seen"] else "ranked"}. Facets: '
    f'{first["facets"]["writer"]}; texts encoded by '
    f'{first["facets"]["encoder"]}. Means of seeds, with the standard '
    'deviation. A ratio is of test Recall@10 and beside the floor that is best '
    'there, or beside blend.',
    '',
    *_table(settings),
    '',
    *_tests(log, settings, arrays, pairs),
    f'Commits {_named(pages.commit(r["commit"]) for r in records)}; devices '
    f'{_named(r["machine"]["device"] for r in records)}.',
    '',
  ]


def _table(settings: dict[str, list[Record]]) -> list[str]:
  """A row a setting, the best on validation first."""
  value = lambda label, split, metric: statistics.fmean(
    r[split][metric] for r in settings[label]
  )
  tested = [n for n, rows in settings.items() if 'test' in rows[0]]
  floors = [n for n in tested if settings[n][0]['floor']]
  test = {label: value(label, 'test', 'recall@10') for label in tested}
  counting = [n for n in floors if settings[n][0]['system'] != 'blend']
  best = max((test[n] for n in counting), default=None)
  blend = next(
    (test[n] for n in floors if settings[n][0]['system'] == 'blend'), None
  )
  ratio = lambda label, other: (
    f'{test[label] / other:.3f}' if label in test and other else '-'
  )

  body = [
    [
      label,
      len(settings[label]),
      *(
        _spread([r[split][metric] for r in settings[label] if split in r])
        for split in ('validation', 'test')
        for metric in _METRICS
      ),
      ratio(label, best),
      ratio(label, blend),
      ', '.join(f'{r["best_epoch"]}/{r["epochs"]}' for r in settings[label]),
      ', '.join(f'{r["seconds"]:.0f}' for r in settings[label]),
    ]
    for label in sorted(
      settings, key=lambda label: -value(label, 'validation', 'recall@10')
    )
  ]
  head = [
    'setting',
    'seeds',
    *(f'{s} {m}' for s in ('validation', 'test') for m in _METRICS),
    'by the best floor',
    'by blend',
    'best epoch',
    'seconds',
  ]
  return pages.table(head, body)


def _named(names: Iterable[str]) -> str:
  """Names in one line, each once."""
  return ', '.join(sorted(set(names)))


def _spread(values: list[float]) -> str:
  """The mean of values, and how far they are apart."""
  if not values:
    return '-'
  mean = pages.digits(statistics.fmean(values))
  if len(values) < 2:
    return mean
  return f'{mean} ({pages.digits(statistics.stdev(values))})'


def _tests(
  log: str,
  settings: dict[str, list[Record]],
  arrays: Arrays,
  pairs: Sequence[Sequence[str]],
) -> list[str]:
  """The paired tests of a log: Recall@10, by events, users resampled."""
  body = []
  for split in ('validation', 'test'):
    found = {
      label: [record for record in rows if split in record]
      for label, rows in settings.items()
    }
    compared = [pair for pair in pairs if all(map(found.get, pair))]
    if not compared:
      continue

    gains = [
      [_gains(found[label], arrays, split) for label in pair]
      for pair in compared
    ]
    users = arrays[f'{log}.users']
    events = len(gains[0][0])
    users = users[:events] if split == 'validation' else users[-events:]
    # All differences are resampled together, which is most of the work.
    means = significance.resampled_means([a - b for a, b in gains], users)
    body += [
      [
        one,
        other,
        split,
        f'{len(found[one])}, {len(found[other])}',
        f'{a.mean() / max(b.mean(), 1e-12) - 1:+.1%}',
        f'{significance.p_of(difference):.3f}',
      ]
      for (one, other), (a, b), difference in zip(
        compared, gains, means, strict=True
      )
    ]
  if not body:
    return []
  head = ['setting', 'against', 'events of', 'seeds', 'recall@10', 'p']
  return [
    *pages.table(head, body),
    '',
    "An event's gain is the mean over a setting's seeds; p is of a bootstrap "
    'over users (SPEC 5.4), so that it says nothing of other seeds.',
    '',
  ]


def _gains(records: list[Record], arrays: Arrays, split: str) -> np.ndarray:
  """f64[events], what each event adds to Recall@10, a mean over the runs."""
  return np.mean(
    [
      significance.gains(arrays[f'{r["key"]}.{split}'] / 2, 'recall@10')
      for r in records
    ],
    axis=0,
  )
