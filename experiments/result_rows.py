"""Rows: one finished run of one system on one log, and where it is kept.

    experiments/results/rows/<experiment>/<log>/
        <system>-<key>.json   figures, command, commit, check sums
        <system>-<key>.npz    ranks of test events, not in git (rank_arrays.py)

A row appears whole or not at all. A row that is there is never computed again,
and is refused where the configuration or the data are not those that it was
made with. Every run is a command of `dynllm_jax.main` in a process of its own,
so that each row can be repeated by hand.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import runpy
import shlex
import subprocess
import sys
from typing import Any

import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax import progress
from dynllm_jax.engine import significance
from dynllm_jax.runs import provenance
from dynllm_jax.runs import run_folder
from dynllm_jax.types import InputError
from experiments import rank_arrays

RESULTS = pathlib.Path(__file__).parent / 'results'
INTERVAL = 'recall@10_interval'  # 95 %, of the test events

Row = dict[str, Any]  # the content of a row's .json
Fields = tuple[tuple[str, Any], ...]  # names and values, of the configuration

# Of a run's results.json.
_KEPT = (
  'validation',
  'test',
  'train_events_per_s',
  'train_seconds_per_epoch',
  'rank_events_per_s',
  'test_seconds',
  'epochs',
  'best_epoch',
  'parameters',
  'peak_memory_bytes',
  'evaluation',
  'commit',
  'machine',
)


@dataclasses.dataclass(frozen=True)
class Log:
  """A log in an experiment.

  Attributes:
    experiment: its name, `overall` for experiments/overall.py.
    name: of the log's config file in configs/.
    events, items: paths, '' where the config needs none.
  """

  experiment: str
  name: str
  events: str = ''
  items: str = ''

  @property
  def folder(self) -> pathlib.Path:
    """Where the finished rows are."""
    return RESULTS / 'rows' / self.experiment / self.name

  @property
  def paths(self) -> list[str]:
    """The data's files that are named."""
    return [path for path in (self.events, self.items) if path]

  def config(self, system: str) -> ml_collections.ConfigDict:
    """The configuration of a system before anything is overridden."""
    return runpy.run_path(f'configs/{self.name}.py')['get_config'](system)

  def config_with_data(
    self, system: str, data_dir: str = ''
  ) -> ml_collections.ConfigDict:
    """The configuration of a system, which names the data.

    Args:
      system: its name, with or without a variant.
      data_dir: where prepared logs are kept, '' for the usual place.
    """
    config = self.config(system)
    config.data.events = self.events or config.data.events
    config.data['items'] = self.items or config.data['items']
    config.data.dir = data_dir or config.data.dir
    return config

  def flags(self) -> list[str]:
    """The flags of a run that name the data."""
    paths = {'events': self.events, 'items': self.items}
    return [f'--config.data.{k}={v}' for k, v in paths.items() if v]


def parse_log(experiment: str, text: str) -> Log:
  """Reads `NAME` or `NAME=EVENTS` or `NAME=EVENTS,ITEMS`.

  Raises:
    InputError: if no config has this name, or a file is missing.
  """
  name, _, paths = text.partition('=')
  events, _, items = paths.partition(',')
  if not pathlib.Path('configs', f'{name}.py').is_file():
    known = sorted(p.stem for p in pathlib.Path('configs').glob('*.py'))
    raise InputError(
      f'--logs: no configs/{name}.py; allowed: {", ".join(known)}'
    )

  log = Log(experiment, name, events, items)
  for path in log.paths:
    if not os.path.isfile(path):
      raise InputError(f'--logs: {path!r} of {name} is no file')
  return log


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is run: a system, fields of the configuration, a seed."""

  system: str
  fields: Fields = ()
  seed: int = 0

  def flags(self) -> list[str]:
    """The flags of a run that differ from the config file."""
    return [f'--config.{k}={v}' for k, v in (*self.fields, ('seed', self.seed))]

  @property
  def key(self) -> str:
    """The system and a short hash of the setting: the name of its files."""
    text = json.dumps([self.system, sorted(self.fields), self.seed])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{self.system}-{digest[:12]}'


def setting_of(row: Row) -> Setting:
  """The setting that a stored row was made with."""
  return Setting(row['system'], tuple(row['fields'].items()), row['seed'])


def origin(log: Log, setting: Setting) -> dict[str, Any]:
  """The files and the configuration that a row is made from.

  Args:
    log: the log.
    setting: of the row.

  Returns:
    `files`, a hash of the data's files, and `config`, the values of the fields
    that the setting leaves as they are, by full name.
  """
  digest = hashlib.sha256()
  for path in log.paths:
    with open(path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())

  own = {f'config.{name}' for name in (*dict(setting.fields), 'seed')}
  config = {
    name: value
    for name, value in config_lib.leaves(log.config(setting.system)).items()
    if name not in own
  }
  return {'files': digest.hexdigest()[:12], 'config': config}


def check_origin(
  path: pathlib.Path, stored: dict[str, Any], current: dict[str, Any]
) -> None:
  """Refuses a stored result that was made from something else.

  Args:
    path: of the stored result.
    stored: the result. A field that it does not have is not compared: a new
      field is off unless it is set, so it leaves old rows as they are.
    current: what `origin` returns now.

  Raises:
    InputError: naming the first difference.
  """
  old, new = stored.get('origin', {}), current
  if old.get('files', new['files']) != new['files']:
    raise InputError(
      f'{path}: was made from other files than those of --logs; allowed: '
      'the same files, another NAME, or results without it'
    )
  for name, value in old.get('config', {}).items():
    if name in new['config'] and new['config'][name] != value:
      raise InputError(
        f'{path}: was made with {name} {value!r}, which is '
        f'{new["config"][name]!r} now; allowed: the same, or results '
        'without it'
      )


def folder_of(workdir: pathlib.Path, log: Log, name: str) -> pathlib.Path:
  """The run folder of a setting.

  Every commit has run folders of its own, so that no run goes on with what
  other code has begun.
  """
  return workdir / provenance.commit().replace(' ', '_') / log.name / name


def command(log: Log, setting: Setting, workdir: str) -> list[str]:
  """The command of a run."""
  return [
    sys.executable,
    '-m',
    'dynllm_jax.main',
    f'--config=configs/{log.name}.py:{setting.system}',
    *log.flags(),
    *setting.flags(),
    f'--workdir={workdir}',
  ]


def read(log: Log, setting: Setting) -> Row | None:
  """The finished row of a setting, None where there is none.

  Raises:
    InputError: if it was made with another configuration or other data.
  """
  path = log.folder / f'{setting.key}.json'
  if not path.exists():
    return None
  row = json.loads(path.read_text())
  check_origin(path, row, origin(log, setting))
  return row


def read_all(log: Log) -> list[Row]:
  """All finished rows of a log, in the order of their keys."""
  rows = [
    json.loads(path.read_text()) for path in sorted(log.folder.glob('*.json'))
  ]
  return [row for row in rows if 'test' in row]  # the others are of tuning


def finished(log: Log) -> dict[str, list[Row]]:
  """All finished rows, by system, in the order of their seeds.

  Raises:
    InputError: if the rows cannot stand in one table: if a system has two rows
      of one seed or of different fields, or two rows are of different logs,
      facets or protocols.
  """
  rows = read_all(log)
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row['system'], []).append(row)
  for system, some in found.items():
    some.sort(key=lambda row: row['seed'])
    _check_seeds(log, system, some)

  for row in rows:
    for name, value in _shared(row).items():
      if value != _shared(rows[0])[name]:
        raise InputError(
          f'{log.folder}: {row["key"]} and {rows[0]["key"]} differ in '
          f'{name}, {value!r} and {_shared(rows[0])[name]!r}; allowed: rows '
          'that can stand in one table'
        )
  return found


def _check_seeds(log: Log, system: str, rows: list[Row]) -> None:
  """Stops unless a system's rows differ in their seeds and in nothing else."""
  keys, seeds = [[row[name] for row in rows] for name in ('key', 'seed')]
  if len(set(seeds)) < len(seeds):
    raise InputError(
      f'{log.folder}: {system} has two rows of one seed, {seeds} of '
      f'{keys}; allowed: one, of the tuned setting'
    )
  if any(row['fields'] != rows[0]['fields'] for row in rows):
    raise InputError(
      f'{log.folder}: the rows {keys} of {system} have other fields each; '
      'allowed: the same for all seeds'
    )


def _shared(row: Row) -> dict[str, Any]:
  """What all rows of a table have in common."""
  evaluation = row['evaluation']
  return {
    **{name: row[name] for name in ('fingerprint', 'split', 'facets')},
    **{name: evaluation[name] for name in ('candidates', 'filter_seen')},
  }


def run(log: Log, setting: Setting, workdir: pathlib.Path) -> Row:
  """Computes a row, or reads it where it is finished.

  Args:
    log: the log.
    setting: what is run.
    workdir: for run folders; a run that was stopped goes on from there.

  Returns:
    The row.

  Raises:
    InputError: if the command fails; its last lines are in the text.
  """
  done = read(log, setting)
  if done:
    return done
  folder = folder_of(workdir, log, setting.key)
  line = command(log, setting, str(folder))
  execute(line)

  arrays = rank_arrays.of_run(folder)
  row = {
    **_described(log, setting, line),
    'config_hash': hashlib.sha256(
      (folder / 'config.json').read_bytes()
    ).hexdigest()[:12],
    **_figures(json.loads((folder / 'results.json').read_text())),
    INTERVAL: list(
      significance.interval(
        significance.gains(arrays.ranks, 'recall@10'), arrays.users
      )
    ),
    'arrays_sha256': arrays.check_sums(),
  }

  # The row comes last: where it is, its ranks were written.
  rank_arrays.write(log.folder, setting.key, arrays)
  run_folder.RunFolder(str(log.folder)).write_json(f'{setting.key}.json', row)
  return row


def _described(log: Log, setting: Setting, line: list[str]) -> Row:
  """The part of a row that is known before its run."""
  return {
    'key': setting.key,
    'log': log.name,
    'system': setting.system,
    'seed': setting.seed,
    'fields': dict(setting.fields),
    'origin': origin(log, setting),
    'command': _public(line, log),
  }


def _figures(results: dict[str, Any]) -> Row:
  """The part of a row that is read from its run's results.json."""
  data = results['data']
  return {
    'source': data['source'],
    'simulated': data['simulated'],
    'split': [data[f'{s}_events'] for s in ('train', 'validation', 'test')],
    'fingerprint': data['fingerprint'],
    'facets': {k: results['facets'][k] for k in ('writer', 'encoder')},
    'train_s': results['train_seconds_per_epoch'] * results['epochs'],
    **{k: results[k] for k in _KEPT},
  }


def read_arrays(log: Log, row: Row) -> rank_arrays.RankArrays | None:
  """The ranks of a finished row, None where they are not on this machine.

  Raises:
    InputError: if they are different from those of the row.
  """
  return rank_arrays.read(log.folder, row)


def execute(line: list[str]) -> None:
  """Runs a command to its end.

  Raises:
    InputError: if it fails.
  """
  progress.say('$ ' + shlex.join(line))
  done = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    tail = ' '.join(done.stderr.strip().splitlines()[-3:])
    raise InputError(f'{shlex.join(line)} ended with {done.returncode}: {tail}')


def _public(line: list[str], log: Log) -> str:
  """The command without this machine's paths."""
  names = {sys.executable: 'python'}
  names.update({path: os.path.basename(path) for path in log.paths})
  text = shlex.join(line[:-1])
  for path, name in names.items():
    text = text.replace(path, name)
  return text
