"""Studies of one system: the same run with one thing changed at a time."""

from collections.abc import Sequence
import dataclasses
import json
import operator
import pathlib
from typing import Any

import ml_collections

from dynllm_jax.storage import atomic
from experiments import grids
from experiments import pages
from experiments import result_rows
from experiments.result_rows import Log
from experiments.result_rows import Setting

Changes = dict[str, dict[str, Any]]  # by label: fields that differ
Record = dict[str, Any]  # a row, and the `label` of its change

_COLUMNS = ('recall@10', 'ndcg@10', 'mrr')


@dataclasses.dataclass(frozen=True)
class Study:
  """What the runs of a study have in common.

  Attributes:
    title: of its page.
    system: its name, with or without a variant.
    epochs: of each run at most, with the patience of grids.py.
    seed: of each run.
    workdir: for run folders.
  """

  title: str
  system: str
  epochs: int
  seed: int
  workdir: pathlib.Path


def differing(
  fields: dict[str, Any], config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """The fields whose values a configuration does not have already."""
  return {
    name: value
    for name, value in fields.items()
    if operator.attrgetter(name)(config) != value
  }


def run(log: Log, study: Study, changes: Changes) -> list[Record]:
  """Runs a system with each change.

  Args:
    log: the log.
    study: what all runs have in common.
    changes: what differs from the configuration; {} where nothing does.

  Returns:
    A record of each run.
  """
  common = (
    ('eval.validation_events', grids.VALIDATION_EVENTS),
    ('train.num_epochs', study.epochs),
    ('train.patience', grids.PATIENCE),
    ('eval.compare', '()'),
  )
  records = []
  for label, fields in changes.items():
    setting = Setting(
      study.system, (*common, *sorted(fields.items())), study.seed
    )
    row = result_rows.run(log, setting, study.workdir)
    records.append({'label': label, **row})
  return records


def write_page(log: Log, study: Study, records: Sequence[Record]) -> None:
  """Writes `results/<experiment>_<log>.json`, `.md` and a chart, `.svg`.

  Args:
    log: the log.
    study: what all runs have in common.
    records: of `run`; the others are compared with the first.
  """
  path = result_rows.RESULTS / f'{log.experiment}_{log.name}'
  page = '\n'.join(_page(log, study, records))
  atomic.write_atomically(
    path.with_suffix('.json'), json.dumps(records, indent=2) + '\n'
  )
  atomic.write_atomically(path.with_suffix('.md'), page)
  _chart(log, records, path.with_suffix('.svg'))


def _page(log: Log, study: Study, records: Sequence[Record]) -> list[str]:
  """The lines of the page."""
  first = records[0]
  kind = 'Simulated log' if first['simulated'] else 'Log'

  return [
    f'# {study.title}: {log.name}',
    '',
    f'{kind}: {first["source"]}; system {first["system"]}, seed '
    f'{first["seed"]}. Facets: {first["facets"]["writer"]}; texts encoded by '
    f'{first["facets"]["encoder"]}. Each run has at most {study.epochs} '
    'epochs. The best epoch is chosen on a fixed sample of '
    f'{grids.VALIDATION_EVENTS:,} validation events; the figures are of all '
    'events.',
    '',
    *_table(records),
    '',
    '"change" is the change of validation Recall@10 from the first row. Each '
    'row is one run with one seed, so a small change may be chance.',
    '',
    f'![Recall@10]({log.experiment}_{log.name}.svg)',
    '',
    '## Commands',
    '',
    '```',
    *(r['command'] for r in records),
    '```',
    '',
  ]


def _table(records: Sequence[Record]) -> list[str]:
  """The table of the runs, a row each."""
  base = records[0]['validation']['recall@10']
  head = [
    '',
    *(f'validation {c}' for c in _COLUMNS),
    'change',
    *(f'test {c}' for c in _COLUMNS),
    'epochs',
    'events/s',
    'commit',
  ]
  body = [
    [
      r['label'],
      *(pages.digits(r['validation'][c]) for c in _COLUMNS),
      f'{r["validation"]["recall@10"] / base - 1:+.1%}',
      *(pages.digits(r['test'][c]) for c in _COLUMNS),
      r['epochs'],
      f'{r["train_events_per_s"]:,.0f}',
      pages.commit(r['commit']),
    ]
    for r in records
  ]

  return pages.table(head, body)


def _chart(log: Log, records: Sequence[Record], path: pathlib.Path) -> None:
  """Draws Recall@10 of each run, with lines at the figures of the first."""
  labels = [r['label'] for r in records]
  values = {
    split: [r[split]['recall@10'] for r in records]
    for split in ('validation', 'test')
  }
  with pages.drawing(path, 7, 1.2 + 0.28 * len(labels)) as (axes,):
    axes.barh(labels, values['validation'], color='0.65', label='validation')
    axes.plot(values['test'], labels, 'o', color='C0', label='test')
    for split, color in (('validation', '0.4'), ('test', 'C0')):
      axes.axvline(values[split][0], color=color, linewidth=0.8)

    axes.invert_yaxis()
    axes.set_xlabel('Recall@10, whole catalogue')
    axes.set_title(
      f'{log.name}, {records[0]["system"]}'
      + (' (simulated log)' if records[0]['simulated'] else '')
    )
    axes.legend()
