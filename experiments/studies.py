"""Studies of one system: the same run with one thing changed at a time."""

import json
import operator
import pathlib
from typing import Any

import ml_collections

from dynllm_jax.storage import atomic
from experiments import grids
from experiments import pages
from experiments import result_rows

Changes = dict[str, dict[str, Any]]  # by label: fields that differ

_COLUMNS = ('recall@10', 'ndcg@10', 'mrr')


def differing(
  fields: dict[str, Any], config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """The fields whose values a configuration does not have already."""
  return {
    name: value
    for name, value in fields.items()
    if operator.attrgetter(name)(config) != value
  }


def run(
  log: result_rows.Log,
  system: str,
  changes: Changes,
  epochs: int,
  seed: int,
  workdir: pathlib.Path,
) -> list[dict[str, Any]]:
  """Runs a system as its config says, then with each change.

  Args:
    log: the log.
    system: its name, with or without a variant.
    changes: what differs; {} for nothing.
    epochs: of each run at most, with the patience of grids.py.
    seed: of each run.
    workdir: for run folders.

  Returns:
    A record of each run: `label` and its row.
  """
  common = (
    ('eval.validation_events', grids.VALIDATION_EVENTS),
    ('train.num_epochs', epochs),
    ('train.patience', grids.PATIENCE),
    ('eval.compare', '()'),
  )
  records = []
  for label, fields in changes.items():
    setting = result_rows.Setting(
      system, (*common, *sorted(fields.items())), seed
    )
    records.append({'label': label, **result_rows.run(log, setting, workdir)})
  return records


def write_page(
  log: result_rows.Log,
  title: str,
  epochs: int,
  records: list[dict[str, Any]],
  note: str = '',
) -> None:
  """Writes `results/<experiment>_<log>.json`, `.md` and a chart, `.svg`.

  Args:
    log: the log.
    title: of the page.
    epochs: of each run at most.
    records: of `run`; the first is what the others are compared with.
    note: what else the reader should know.
  """
  first = records[0]
  path = result_rows.RESULTS / f'{log.experiment}_{log.name}'
  kind = 'simulated log' if first['simulated'] else 'log'
  base = first['validation']['recall@10']
  lines = [
    f'# {title}: {log.name}',
    '',
    f'{kind.capitalize()}: {first["source"]}; system {first["system"]}, '
    f'seed {first["seed"]}. Facets: {first["facets"]["writer"]}; texts '
    f'encoded by {first["facets"]["encoder"]}. {note}At most {epochs} epochs '
    'each; the best is chosen on a fixed sample of '
    f'{grids.VALIDATION_EVENTS:,} validation events, the figures are of '
    'all.',
    '',
  ]
  lines += pages.table(
    [
      '',
      *(f'validation {c}' for c in _COLUMNS),
      'change',
      *(f'test {c}' for c in _COLUMNS),
      'epochs',
      'events/s',
      'commit',
    ],
    [
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
    ],
  )
  lines += [
    '',
    '"change" is of validation Recall@10 against the first row. '
    'Each row is one run of one seed: a small change may be chance.',
    '',
    f'![Recall@10]({path.name}.svg)',
    '',
    '## Commands',
    '',
    '```',
    *(r['command'] for r in records),
    '```',
    '',
  ]
  atomic.write_atomically(
    path.with_suffix('.json'), json.dumps(records, indent=2) + '\n'
  )
  atomic.write_atomically(path.with_suffix('.md'), '\n'.join(lines))
  _chart(log, records, path.with_suffix('.svg'))


def _chart(log, records, path):
  """Recall@10 of both splits, run by run; a line where the first stands."""
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
