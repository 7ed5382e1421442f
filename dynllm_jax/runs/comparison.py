"""`--mode=compare`: runs side by side, in `comparison.html` (SPEC 5.4)."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.progress import say
from dynllm_jax.runs import charts
from dynllm_jax.runs import results as results_lib
from dynllm_jax.runs import run_page
from dynllm_jax.runs import verdict as verdict_lib
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import WATCHED
from dynllm_jax.types import InputError

# What two runs must share, as results.json has it.
_SHARED = (
  ('data', 'fingerprint', 'the prepared data'),
  ('evaluation', 'candidates', 'config.eval.candidates'),
  ('evaluation', 'filter_seen', 'config.eval.filter_seen'),
)


_FLOOR = ' (floor)'
_COMMIT = re.compile(r'^([0-9a-f]{9})[0-9a-f]{31}')


class _Run(NamedTuple):
  """A finished run, as its folder has it."""

  label: str
  folder: str
  results: dict[str, Any]
  history: list[dict[str, Any]]
  config: dict[str, Any]
  ranks: np.ndarray  # f32[test events]
  users: np.ndarray  # i32[test events]
  floors: dict[str, np.ndarray]


def run(folders: Sequence[str], workdir: str) -> None:
  """Compares finished runs of the same log and protocol.

  Args:
    folders: of the runs, two or more.
    workdir: where `comparison.html` is written.

  Raises:
    InputError: if there are fewer than two, one is no finished run, or they
      were not ranked on the same events in the same way.
  """
  names = [os.path.normpath(folder) for folder in folders if folder]
  if len(set(names)) < 2 or len(set(names)) < len(names):
    raise InputError(
      f'--runs: {",".join(folders)!r} is not allowed; allowed: two run folders '
      'or more, each once, with commas between them'
    )
  output = RunFolder(workdir)
  output.check()
  runs = [
    _read(folder, label)
    for folder, label in zip(names, _labels(names), strict=True)
  ]
  for other in runs[1:]:
    _check_alike(runs[0], other)

  compared = _compare(runs)
  output.write_text('comparison.html', _page(runs, compared))
  rows = {run.label: run.results['test'] for run in runs}
  say(f'test, log {runs[0].results["data"]["source"]}')
  say(results_lib.table(rows, _columns(runs)))
  first = runs[0].label
  for pair in compared['pairs']:
    if pair['system'] == first:
      say(verdict_lib.in_words(pair, 'the other run'))
  say(f'wrote {output.path / "comparison.html"}')


def _labels(names: list[str]) -> list[str]:
  """Short names of run folders: the last parts of their paths that differ."""
  parts = [name.split(os.sep) for name in names]
  for count in range(1, max(map(len, parts)) + 1):
    labels = ['/'.join(part[-count:]) for part in parts]
    if len(set(labels)) == len(labels):
      return labels
  return names


def _read(path: str, label: str) -> _Run:
  """Reads a run folder.

  Raises:
    InputError: if it has no results, or those of an earlier version.
  """
  folder = RunFolder(path)
  results = folder.read_json('results.json')
  if results is None:
    raise InputError(
      f'--runs: {path!r} has no results.json; allowed: the folder of a '
      'finished run with --mode=train'
    )
  arrays = folder.read_arrays('ranks.npz')
  if 'over_time' not in results or 'test' not in arrays:
    raise InputError(
      f'--runs: {path!r} was written by an earlier version, or in part; '
      'allowed: a run that --mode=evaluate has ranked again'
    )

  history = (folder.path / 'metrics.jsonl').read_text().splitlines()
  return _Run(
    label=label,
    folder=path,
    results=results,
    history=[json.loads(line) for line in history],
    config=folder.read_json('config.json') or {},
    ranks=arrays['test'],
    users=arrays['test_users'],
    floors=folder.read_arrays('floors.npz'),
  )


def _check_alike(first: _Run, other: _Run) -> None:
  """Stops where two runs cannot be compared event by event.

  Raises:
    InputError: naming what differs.
  """
  shared = list(_SHARED)
  # Systems that count advance at every time: they have no size of a batch.
  sizes = [run.results['evaluation']['batch_size'] for run in (first, other)]
  if all(isinstance(size, int) for size in sizes):
    shared.append(('evaluation', 'batch_size', 'config.eval.batch_size'))
  for section, key, words in shared:
    values = [run.results[section][key] for run in (first, other)]
    if values[0] != values[1]:
      raise InputError(
        f'--runs: {first.folder!r} and {other.folder!r} differ in {words}, '
        f'{values[0]!r} and {values[1]!r}; allowed: runs whose test events '
        'are the same and were ranked in the same way'
      )
  if not set(first.results['evaluation']['ks']) & set(
    other.results['evaluation']['ks']
  ):
    raise InputError(
      f'--runs: {first.folder!r} and {other.folder!r} have no cut-off of '
      'config.eval.ks in common; allowed: runs that share one'
    )


def _columns(runs: Sequence[_Run]) -> list[str]:
  """The metrics that all runs have."""
  shared = [run.results['evaluation']['ks'] for run in runs]
  ks = [k for k in shared[0] if all(k in other for other in shared)]
  return results_lib.columns(ks)


def _compare(runs: Sequence[_Run]) -> dict[str, Any]:
  """Intervals of runs and floors, and every two runs against each other."""
  labels = [run.label for run in runs]
  ranks = {run.label: run.ranks for run in runs}
  for run in runs:
    for name, found in run.floors.items():
      if len(found) == len(run.ranks):
        ranks.setdefault(name + _FLOOR, found)
  return verdict_lib.compare(
    ranks, runs[0].users, _columns(runs), paired=labels
  ) | {'ranks': ranks}


def _page(runs: Sequence[_Run], compared: Mapping[str, Any]) -> str:
  """The page of a comparison."""
  columns = _columns(runs)
  pairs = {(p['system'], p['rival']): p for p in compared['pairs']}
  best = max(runs, key=lambda run: float(np.mean(run.ranks <= 10)))

  def of_all(name: str) -> Any:
    return charts.lines(
      {
        run.label: [(r['epoch'], r[name]) for r in run.history if name in r]
        for run in runs
      }
    )

  return run_page.rendered(
    'comparison.html.jinja',
    data=runs[0].results['data'],
    runs=[
      {
        'label': run.label,
        'system': run.results['system'],
        'folder': run.folder,
        'commit': _COMMIT.sub(r'\1', run.results['commit']),
        'color': f's{number % charts.COLORS}',
        'cost': run_page.cost(run.results),
      }
      for number, run in enumerate(runs)
    ],
    best=best.label,
    columns=columns,
    figures=run_page.figure_rows(
      compared['ranks'], compared['intervals'], columns, [r.label for r in runs]
    ),
    estimates=charts.estimates(_estimates(runs, compared)),
    over_time=charts.lines(
      {run.label: _over_time(run) for run in runs}, dates=True
    ),
    loss=of_all('loss'),
    recall=of_all(f'validation_{WATCHED}'),
    matrix=[
      {
        'label': row.label,
        'cells': [_cell(pairs.get((row.label, run.label))) for run in runs],
      }
      for row in runs
    ],
    groups=_groups(runs),
    fields=_differences(runs),
  )


def _estimates(
  runs: Sequence[_Run], compared: Mapping[str, Any]
) -> list[charts.Estimate]:
  colors = {
    run.label: f's{number % charts.COLORS}' for number, run in enumerate(runs)
  }
  rows = []
  for name, found in compared['ranks'].items():
    low, high = compared['intervals'][name][WATCHED]
    value = float(np.mean(found <= 10))
    color = colors.get(name, 'floor')
    name = name.removesuffix(_FLOOR)
    rows.append(charts.Estimate(name, value, low, high, color))
  return sorted(rows, key=lambda row: -row.value)


def _over_time(run: _Run) -> list[tuple[float, float]]:
  return [
    ((part['first'] + part['last']) / 2, part[WATCHED][run.results['system']])
    for part in run.results['over_time']
  ]


def _cell(pair: Mapping[str, Any] | None) -> dict[str, str]:
  """A cell of the table of pairs; None on its diagonal."""
  if pair is None:
    return {'text': '', 'small': '', 'says': ''}
  return {
    'text': f'{pair["difference"]:+.4f}',
    'small': verdict_lib.shown_p(pair['p']),
    'says': pair['says'],
  }


def _groups(runs: Sequence[_Run]) -> list[dict[str, Any]]:
  """Recall by group of each run, a row a group."""
  tables = [run_page.group_rows(run.results, None) for run in runs]
  return [
    {**rows[0], 'values': [row['own'] for row in rows]}
    for rows in zip(*tables, strict=True)
  ]


def _differences(runs: Sequence[_Run]) -> list[dict[str, Any]]:
  """Fields of the configuration in which the runs differ."""
  flat = [dict(config_lib.flatten(run.config)) for run in runs]
  names = sorted(set().union(*flat))

  def shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else '-'

  rows = [(name, [shown(fields, name) for fields in flat]) for name in names]
  return [
    {'name': name, 'values': values}
    for name, values in rows
    if len(set(values)) > 1
  ]
