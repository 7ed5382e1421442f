r"""Every system on every log: tuned on validation, tested once, one table.

    python -m experiments.overall \
        --logs=online_retail=interactions.csv,items.csv \
        --systems=dynllm,tgn,popularity --seeds=0,1,2

A stopped call goes on where it was: result_rows.py keeps finished rows, and a run
that was cut off resumes from its checkpoint.
"""

import functools
import itertools
import json
import pathlib
import statistics
import sys
import tempfile

from absl import app
from absl import flags

from dynllm_jax import config as config_lib
from dynllm_jax import progress
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from experiments import grids
from experiments import pages
from experiments import result_rows
from experiments import significance

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEMS = flags.DEFINE_list('systems', [], 'Systems; default: all.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds; tuning uses the first.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/overall', 'Where run folders are kept.'
)
_VERIFY = flags.DEFINE_string(
  'verify', '', 'A system whose stored rows are computed again and compared.'
)


def tune(
  log: result_rows.Log, system: str, seed: int, workdir: pathlib.Path
) -> tuple[tuple, float]:
  """The grid point with the best validation Recall@10 after two epochs.

  Args:
    log: the log.
    system: its name, with or without a variant.
    seed: of the tuning runs.
    workdir: for run folders.

  Returns:
    The point, and the seconds of an epoch with its validation.

  Raises:
    InputError: if no point can be trained, or stored points were made with
      another configuration or other data.
  """
  path = log.folder / f'{system}-grid.json'
  origin = result_rows.origin(
    log, result_rows.Setting(system, grids.tuning_fields(grids.grid()[0]))
  )
  if not path.exists():
    points = []
    for point in grids.grid():
      setting = result_rows.Setting(system, grids.tuning_fields(point), seed)
      folder = result_rows.folder_of(workdir, log, f'grid/{setting.key}')
      try:
        result_rows.execute(result_rows.command(log, setting, str(folder)))
      except InputError as error:  # such as a loss that grows without bound
        points.append({'point': point, 'failed': str(error)})
        continue
      epochs = [
        json.loads(line)
        for line in (folder / 'metrics.jsonl').read_text().splitlines()
      ]
      points.append(
        {
          'point': point,
          'validation_recall@10': max(
            e['validation_recall@10'] for e in epochs
          ),
          # The last epoch compiles nothing.
          'epoch_seconds': (
            epochs[-1]['seconds'] + epochs[-1]['validation_seconds']
          ),
        }
      )
    if all('failed' in point for point in points):
      raise InputError(
        f'{system}: no point of the grid can be trained: {points[0]["failed"]}'
      )
    found = {
      'log': log.name,
      'system': system,
      'seed': seed,
      'origin': origin,
      'commit': provenance.commit(),
      'points': points,
    }
    if not path.exists():  # another process may have tuned meanwhile
      atomic.write_atomically(path, json.dumps(found, indent=2) + '\n')
  found = json.loads(path.read_text())
  result_rows.check_origin(path, found, origin)
  best = max(
    (p for p in found['points'] if 'failed' not in p),
    key=lambda p: p['validation_recall@10'],
  )
  return tuple(tuple(f) for f in best['point']), best['epoch_seconds']


def settings_of(
  log: result_rows.Log, system: str, seeds: list[int], workdir: pathlib.Path
) -> list[result_rows.Setting]:
  """What is tested of a system: the tuned run of every seed."""
  if not grids.is_learned(system):
    return [result_rows.Setting(system, (('eval.compare', '()'),))]
  point, epoch_seconds = tune(log, system, seeds[0], workdir)
  fields = grids.final_fields(point, epoch_seconds)
  return [result_rows.Setting(system, fields, seed) for seed in seeds]


def summarize(found: list[dict]) -> dict:
  """A system's entry of `results/<log>.json` from its rows."""
  groups = sorted(set().union(*(r['test']['groups'] for r in found)))
  mean = lambda values: statistics.fmean(values)
  figures = [k for k in found[0]['test'] if k not in ('groups', 'events')]
  return {
    'seeds': [r['seed'] for r in found],
    'test': {k: mean(r['test'][k] for r in found) for k in figures},
    'validation': {k: mean(r['validation'][k] for r in found) for k in figures},
    'spread': {
      k: statistics.stdev(r['test'][k] for r in found) for k in figures
    }
    if len(found) > 1
    else {},
    'groups': {
      g: mean(r['test']['groups'][g].get('recall@10', 0.0) for r in found)
      for g in groups
    },
    'group_events': {
      g: found[0]['test']['groups'][g]['events'] for g in groups
    },
    'train_s': mean(r['train_s'] for r in found),
    'rank_s': mean(r['test_seconds'] for r in found),
    'train_events_per_s': mean(r['train_events_per_s'] for r in found),
    'epochs': [r['epochs'] for r in found],
    'parameters': found[0]['parameters'],
    'peak_memory_bytes': max(r['peak_memory_bytes'] for r in found),
    'fields': found[0]['fields'],
    'commits': sorted({r['commit'] for r in found}),
    'commands': [r['command'] for r in found],
  }


def compare(
  log: result_rows.Log, found: dict[str, list[dict]], systems: dict[str, dict]
) -> list[dict]:
  """DynLLM's best variant against the best other system, metric by metric.

  Which are best is decided on validation.
  """
  ours = [name for name in systems if name.startswith('dynllm')]
  others = [name for name in systems if name not in ours]
  if not ours or not others:
    return []
  users = result_rows.test_users(log)
  comparisons = []
  for metric in ('recall@10', 'ndcg@10'):
    best = functools.partial(
      max, key=lambda name: systems[name]['validation'][metric]
    )
    system, rival = best(ours), best(others)
    values = [
      significance.gains(result_rows.test_ranks(log, found[name][0]), metric)
      for name in (system, rival)
    ]
    comparisons.append(
      {
        'metric': metric,
        'system': system,
        'rival': rival,
        'ratio': (
          systems[system]['test'][metric] / systems[rival]['test'][metric]
        ),
        'p': significance.p_value(*values, users),
      }
    )
  return comparisons


def write_page(log: result_rows.Log) -> None:
  """Writes `results/<log>.json`, the page and the chart from finished rows."""
  users = result_rows.test_users(log)
  found = result_rows.finished(log)
  systems = {}
  for system, some in found.items():
    systems[system] = summarize(some)
    systems[system]['interval'] = significance.interval(
      significance.gains(result_rows.test_ranks(log, some[0]), 'recall@10'),
      users,
    )
  row = next(iter(found.values()))[0]
  shared = {
    k: row[k]
    for k in (
      'source',
      'simulated',
      'split',
      'fingerprint',
      'facets',
      'machine',
    )
  }
  batch = config_lib.default().eval.batch_size
  result = {
    'log': log.name,
    **shared,
    'commit': provenance.commit(),
    'protocol': (
      f'Learned systems share a state among {batch} events. Each was tuned '
      f'on {len(grids.grid())} points of one grid, {grids.GRID_EPOCHS} '
      'epochs each, by validation Recall@10 of a fixed sample of '
      f'{grids.VALIDATION_EVENTS:,} events; the best point was trained '
      f'for at most {grids.MAX_EPOCHS} epochs or {grids.MAX_SECONDS} s '
      f'with patience {grids.PATIENCE}, and tested once.'
    ),
    'systems': systems,
    'comparisons': compare(log, found, systems),
  }
  folder = result_rows.RESULTS
  atomic.write_atomically(
    folder / f'{log.name}.json', json.dumps(result, indent=2) + '\n'
  )
  atomic.write_atomically(folder / f'{log.name}.md', pages.markdown(result))
  pages.chart(result, folder / f'{log.name}.svg')


def verify(log: result_rows.Log, system: str) -> None:
  """Trains and tests a system's stored rows anew; says how figures differ.

  Raises:
    InputError: if there is no stored row, or it is of another log.
  """
  found = result_rows.finished(log)
  if system not in found:
    raise InputError(
      f'--verify: {system!r} has no row in {log.folder}; allowed: '
      f'{", ".join(found)}'
    )
  for old in found[system]:
    setting = result_rows.Setting(
      system, tuple(old['fields'].items()), old['seed']
    )
    with tempfile.TemporaryDirectory() as folder:
      result_rows.execute(result_rows.command(log, setting, folder))
      new = json.loads(pathlib.Path(folder, 'results.json').read_text())
    if new['data']['fingerprint'] != old['fingerprint']:
      raise InputError(
        f'--logs: the log of {old["key"]} in {log.folder} is another one; '
        'allowed: the same'
      )
    for metric in ('recall@10', 'ndcg@10', 'mrr'):
      progress.say(
        f'{log.name} {setting.system} seed {setting.seed} {metric}: stored '
        f'{old["test"][metric]:.6f}, again {new["test"][metric]:.6f}'
      )


def main(argv: list[str]) -> int:
  """Reads the flags, computes what is missing, writes the pages."""
  del argv
  try:
    logs = [result_rows.parse_log('overall', text) for text in _LOGS.value]
    systems = _SYSTEMS.value or grids.all_systems()
    seeds = _seeds()
    for log, system in itertools.product(logs, systems):
      _check(log, system)
    failed = []
    for log in logs:
      if _VERIFY.value:
        verify(log, _VERIFY.value)
        continue
      for system in systems:
        try:
          for setting in settings_of(
            log, system, seeds, pathlib.Path(_WORKDIR.value)
          ):
            result_rows.run(log, setting, pathlib.Path(_WORKDIR.value))
        except InputError as error:  # the others go on
          progress.say(f'{log.name} {system} failed: {error}')
          failed.append(f'{system} on {log.name}: {error}')
          continue
        write_page(log)
    if failed:
      raise InputError('; '.join(failed))
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  return 0


def _seeds():
  """The seeds that were asked for, distinct."""
  seeds = [int(seed) for seed in _SEEDS.value if seed.isdecimal()]
  if not seeds or len(set(seeds)) < len(_SEEDS.value):
    raise InputError(
      f'--seeds: {",".join(_SEEDS.value)!r} is not allowed; allowed: '
      'different whole numbers from 0, such as 0,1,2'
    )
  return seeds


def _check(log, system):
  """Stops before any work where a system cannot be in the table."""
  ks = log.config(system).eval.ks
  if not set(ks) >= {10, 20, 30}:
    raise InputError(
      f'configs/{log.name}.py: eval.ks {tuple(ks)} lacks 10, 20 or 30, '
      'which the page shows; allowed: these and others'
    )


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
