r"""Every system on every log: tuned on validation, tested once, one table.

    python -m experiments.overall \
        --logs=online_retail=interactions.csv,items.csv \
        --systems=dynllm,tgn,popularity --seeds=0,1,2

A stopped call goes on where it was: finished rows are kept (rows.py), a run
that was cut off resumes from its checkpoint.
"""

import collections
import json
import os
import pathlib
import statistics

from absl import app
from absl import flags

from dynllm_jax import reporting
from dynllm_jax.types import InputError
from experiments import grids
from experiments import pages
from experiments import rows

_LOGS = flags.DEFINE_multi_string(
    'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.')
_SYSTEMS = flags.DEFINE_list('systems', [], 'Systems; default: all.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds; tuning uses the first.')
_WORKDIR = flags.DEFINE_string(
    'workdir', 'runs/overall', 'Where run folders are kept.')
_VERIFY = flags.DEFINE_string(
    'verify', '', 'A system whose stored rows are computed again and compared.')


def tune(log: rows.Log, system: str, seed: int,
         workdir: pathlib.Path) -> tuple[tuple, float]:
  """The grid point with the best validation Recall@10 after two epochs.

  Args:
    log: the log.
    system: its name, with or without `+walk`.
    seed: of the tuning runs.
    workdir: for run folders.

  Returns:
    The point, and the seconds of an epoch with its validation.
  """
  path = rows.RESULTS / 'rows' / log.name / f'{system}-grid.json'
  if path.exists():
    found = json.loads(path.read_text())
  else:
    points = []
    for point in grids.grid():
      setting = rows.Setting(system, grids.tuning_fields(point), seed)
      folder = workdir / log.name / 'grid' / f'{system}-{setting.key()}'
      rows.execute(rows.command(log, setting, str(folder)))
      epochs = [
          json.loads(line)
          for line in (folder / 'metrics.jsonl').read_text().splitlines()]
      points.append({
          'point': point,
          'validation_recall@10': max(
              e['validation_recall@10'] for e in epochs),
          # The last epoch compiles nothing.
          'epoch_seconds': (
              epochs[-1]['seconds'] + epochs[-1]['validation_seconds'])})
    found = {'log': log.name, 'system': system, 'seed': seed,
             'commit': reporting.commit(), 'points': points}
    reporting.write_atomically(path, json.dumps(found, indent=2) + '\n')
  best = max(found['points'], key=lambda p: p['validation_recall@10'])
  return tuple(tuple(f) for f in best['point']), best['epoch_seconds']


def settings_of(log: rows.Log, system: str, seeds: list[int],
                workdir: pathlib.Path) -> list[rows.Setting]:
  """What is tested of a system: the tuned run of every seed."""
  if not grids.is_learned(system):
    return [rows.Setting(system, (('eval.compare', '()'),))]
  point, epoch_seconds = tune(log, system, seeds[0], workdir)
  fields = grids.final_fields(point, epoch_seconds)
  return [rows.Setting(system, fields, seed) for seed in seeds]


def summarize(found: list[dict]) -> dict:
  """A system's entry of `results/<log>.json` from its rows."""
  groups = sorted(set().union(*(r['test']['groups'] for r in found)))
  mean = lambda values: statistics.fmean(values)
  figures = [k for k in found[0]['test'] if k not in ('groups', 'events')]
  return {
      'seeds': [r['seed'] for r in found],
      'test': {k: mean(r['test'][k] for r in found) for k in figures},
      'validation': {
          k: mean(r['validation'][k] for r in found) for k in figures},
      'spread': {
          k: statistics.stdev(r['test'][k] for r in found) for k in figures
      } if len(found) > 1 else {},
      'groups': {
          g: mean(r['test']['groups'][g].get('recall@10', 0.0) for r in found)
          for g in groups},
      'group_events': {
          g: found[0]['test']['groups'][g]['events'] for g in groups},
      'train_s': mean(r['train_s'] for r in found),
      'rank_s': mean(r['test_seconds'] for r in found),
      'train_events_per_s': mean(r['train_events_per_s'] for r in found),
      'epochs': [r['epochs'] for r in found],
      'parameters': found[0]['parameters'],
      'peak_memory_bytes': max(r['peak_memory_bytes'] for r in found),
      'fields': found[0]['fields'],
      'commits': sorted({r['commit'] for r in found}),
      'commands': [r['command'] for r in found]}
