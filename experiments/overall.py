r"""Every system on every log: tuned on validation, tested once, one table.

    python -m experiments.overall \
        --logs=online_retail=interactions.csv,items.csv \
        --systems=dynllm,tgn,popularity --seeds=0,1,2

A call that was stopped goes on where it was: finished rows are kept
(result_rows.py), and a run that was cut off resumes from its checkpoint.
"""

import itertools
import json
import pathlib
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from experiments import exit_status
from experiments import grids
from experiments import overall_results
from experiments import result_rows
from experiments import verify
from experiments.result_rows import Fields
from experiments.result_rows import Log
from experiments.result_rows import Setting

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEMS = flags.DEFINE_list('systems', [], 'Systems; default: all.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds; tuning uses the first.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/overall', 'Where run folders are kept.'
)
_VERIFY = flags.DEFINE_string(
  'verify',
  '',
  'A system whose stored rows are computed again and compared; their ranks '
  'are kept.',
)


class Tuned(NamedTuple):
  """What tuning has chosen.

  Attributes:
    point: of the grid.
    per_epoch: updates of an epoch.
    epoch_seconds: of an epoch with its validation.
  """

  point: Fields
  per_epoch: int
  epoch_seconds: float


def tune(log: Log, system: str, seed: int, workdir: pathlib.Path) -> Tuned:
  """The grid point with the best validation Recall@10.

  Points that the sample of validation events cannot tell from the best are
  tried again, for longer and on all of them.

  Args:
    log: the log.
    system: its name, with or without a variant.
    seed: of the tuning runs.
    workdir: for run folders.

  Raises:
    InputError: if no point can be trained, or stored points were made with
      another configuration or other data.
  """
  path = log.folder / f'{system}-grid.json'
  points = grids.grid(system)
  own = tuple(dict.fromkeys(name for point in points for name, _ in point))
  origin = result_rows.origin(
    log,
    Setting(
      system,
      (
        *((name, None) for name in own),
        *grids.tuning_fields(system, (), 1),
      ),
    ),
  )
  if not path.exists():
    tried = _try_points(log, system, points, seed=seed, workdir=workdir)
    close = grids.within_an_error(tried)
    if len(close) > 1:
      tried += _try_points(
        log, system, close, seed=seed, workdir=workdir, again=True
      )
    found = {
      'log': log.name,
      'system': system,
      'seed': seed,
      'origin': origin,
      'commit': provenance.commit(),
      'points': tried,
    }
    if not path.exists():  # another process may have tuned meanwhile
      atomic.write_atomically(path, json.dumps(found, indent=2) + '\n')

  found = json.loads(path.read_text())
  result_rows.check_origin(path, found, origin)
  trained = [p for p in found['points'] if 'failed' not in p]
  best = max(
    [p for p in trained if p['again']] or trained,
    key=lambda p: p['validation_recall@10'],
  )
  point = tuple(tuple(field) for field in best['point'])
  return Tuned(point, best['updates_per_epoch'], best['epoch_seconds'])


def _try_points(
  log: Log,
  system: str,
  points: list[Fields],
  *,
  seed: int,
  workdir: pathlib.Path,
  again: bool = False,
) -> list[dict[str, Any]]:
  """Trains some points of the grid; a record of each."""
  tried = []
  for point in points:
    per_epoch = grids.updates_per_epoch(log, system, point)
    setting = Setting(
      system, grids.tuning_fields(system, point, per_epoch, again), seed
    )
    folder = result_rows.folder_of(workdir, log, f'grid/{setting.key}')
    record: dict[str, Any] = {'point': point, 'again': again}
    tried.append(record)
    try:
      result_rows.execute(result_rows.command(log, setting, str(folder)))
    except InputError as error:  # such as a loss that grows without bound
      record['failed'] = str(error)
      continue

    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    last = epochs[-1]  # which compiles nothing
    record.update(
      {
        'validation_recall@10': max(e['validation_recall@10'] for e in epochs),
        'updates_per_epoch': per_epoch,
        'epoch_seconds': last['seconds'] + last['validation_seconds'],
      }
    )
  if all('failed' in record for record in tried):
    raise InputError(
      f'{system}: no point of the grid can be trained: {tried[0]["failed"]}'
    )
  return tried


def settings_of(
  log: Log, system: str, seeds: list[int], workdir: pathlib.Path
) -> list[Setting]:
  """What is tested of a system: the tuned run of every seed."""
  if not grids.grid(system):
    return [Setting(system, (('eval.compare', '()'),))]
  tuned = tune(log, system, seeds[0], workdir)
  fields = grids.final_fields(system, *tuned)
  if grids.kind_of(system) == 'none':  # one seed is as another
    seeds = seeds[:1]
  return [Setting(system, fields, seed) for seed in seeds]


def verify_system(log: Log, system: str) -> None:
  """Trains and tests a system's stored rows again and compares.

  Raises:
    InputError: if there is no stored row, or it is of another log, or came out
      differently.
  """
  found = result_rows.finished(log)
  if system not in found:
    raise InputError(
      f'--verify: {system!r} has no row in {log.folder}; allowed: '
      f'{", ".join(found)}'
    )
  verify.verify(log, found[system])


def main(argv: list[str]) -> int:
  """Reads the flags, computes what is missing, writes the pages."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if a flag is wrong, before any work, or at the end if systems
      have failed.
  """
  logs = [result_rows.parse_log('overall', text) for text in _LOGS.value]
  systems = _SYSTEMS.value or grids.all_systems()
  seeds = _seeds()
  for log, system in itertools.product(logs, systems):
    _check(log, system)
  if _VERIFY.value:
    for log in logs:
      verify_system(log, _VERIFY.value)
    return

  workdir, failed = pathlib.Path(_WORKDIR.value), []
  for log, system in itertools.product(logs, systems):
    try:
      for setting in settings_of(log, system, seeds, workdir):
        result_rows.run(log, setting, workdir)
    except InputError as error:  # the others go on
      progress.say(f'{log.name} {system} failed: {error}')
      failed.append(f'{system} on {log.name}: {error}')
      continue
    overall_results.write_page(log)
  if failed:
    raise InputError('; '.join(failed))


def _seeds() -> list[int]:
  """The seeds that were asked for, which must differ."""
  seeds = [int(seed) for seed in _SEEDS.value if seed.isdecimal()]
  if not seeds or len(set(seeds)) < len(_SEEDS.value):
    raise InputError(
      f'--seeds: {",".join(_SEEDS.value)!r} is not allowed; allowed: '
      'different whole numbers from 0, such as 0,1,2'
    )
  return seeds


def _check(log: Log, system: str) -> None:
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
