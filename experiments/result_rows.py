"""Rows: one finished run of one system on one log, and where it is kept.

    experiments/results/rows/<experiment>/<log>/
        <system>-<key>.json   figures, command, commit
        <system>-<key>.npz    ranks of test events
        test_users.npz        whose events they are

A row appears whole or not at all; a row that is there is never computed
again, and is refused where configuration or data are not those that it was
made with. Runs are commands of `dynllm_jax.main` in processes of their own, so
that each row can be repeated by hand.
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
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax import progress
from dynllm_jax.runs import provenance
from dynllm_jax.runs import run_folder
from dynllm_jax.types import InputError

RESULTS = pathlib.Path(__file__).parent / 'results'
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

  def config(self, system: str) -> ml_collections.ConfigDict:
    """The configuration of a system before anything is overridden."""
    return runpy.run_path(f'configs/{self.name}.py')['get_config'](system)

  def flags(self) -> list[str]:
    """The command line's part that names the data."""
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
  for path in filter(None, (events, items)):
    if not os.path.isfile(path):
      raise InputError(f'--logs: {path!r} of {name} is no file')
  return Log(experiment, name, events, items)


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is run: a system, fields of the configuration, a seed."""

  system: str
  fields: tuple[tuple[str, Any], ...] = ()
  seed: int = 0

  def flags(self) -> list[str]:
    """The command line's part that differs from the config file."""
    return [f'--config.{k}={v}' for k, v in (*self.fields, ('seed', self.seed))]

  @property
  def key(self) -> str:
    """The system and a short hash of the setting: the name of its files."""
    text = json.dumps([self.system, sorted(self.fields), self.seed])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{self.system}-{digest[:12]}'


def origin(log: Log, setting: Setting) -> dict[str, Any]:
  """What a row is made with beside its setting.

  Args:
    log: the log.
    setting: of the row.

  Returns:
    `files`, a hash of the data's files, and `config`, the values of the fields
    that the setting leaves as they are, by full name.
  """
  digest = hashlib.sha256()
  for path in filter(None, (log.events, log.items)):
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
  """Stops where what is stored was made with something else.

  Args:
    path: of what is stored.
    stored: what is stored; a field that it does not have is not compared, so
      that a new field, which is off where nothing says otherwise, leaves old
      rows as they are.
    current: of `origin`.

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
  """Where a run is kept: what another commit has begun is not gone on with."""
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


def read(log: Log, setting: Setting) -> dict[str, Any] | None:
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


def finished(log: Log) -> dict[str, list[dict[str, Any]]]:
  """All finished rows, by system, in the order of their seeds.

  Raises:
    InputError: if a system has two rows of one seed or of other fields, or two
      rows are of other logs, facets or protocols.
  """
  found = {}
  for path in sorted(log.folder.glob('*.json')):
    row = json.loads(path.read_text())
    if 'test' in row:
      found.setdefault(row['system'], []).append(row)
  for system, some in found.items():
    some.sort(key=lambda row: row['seed'])
    keys, seeds = [[row[k] for row in some] for k in ('key', 'seed')]
    if len(set(seeds)) < len(seeds):
      raise InputError(
        f'{log.folder}: {system} has two rows of one seed, {seeds} of '
        f'{keys}; allowed: one, of the tuned setting'
      )
    if any(row['fields'] != some[0]['fields'] for row in some):
      raise InputError(
        f'{log.folder}: the rows {keys} of {system} have other fields each; '
        'allowed: the same for all seeds'
      )
  every = [row for some in found.values() for row in some]
  for row in every:
    for name, value in _shared(row).items():
      if value != _shared(every[0])[name]:
        raise InputError(
          f'{log.folder}: {row["key"]} and {every[0]["key"]} differ in '
          f'{name}, {value!r} and {_shared(every[0])[name]!r}; allowed: rows '
          'that can stand in one table'
        )
  return found


def _shared(row):
  """What all rows of a table have in common."""
  evaluation = row['evaluation']
  return {
    **{name: row[name] for name in ('fingerprint', 'split', 'facets')},
    **{name: evaluation[name] for name in ('candidates', 'filter_seen')},
  }


def run(log: Log, setting: Setting, workdir: pathlib.Path) -> dict[str, Any]:
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
  results = json.loads((folder / 'results.json').read_text())
  row = {
    'key': setting.key,
    'log': log.name,
    'system': setting.system,
    'seed': setting.seed,
    'fields': dict(setting.fields),
    'origin': origin(log, setting),
    'command': _public(line, log),
    'config_hash': hashlib.sha256(
      (folder / 'config.json').read_bytes()
    ).hexdigest()[:12],
    'source': results['data']['source'],
    'simulated': results['data']['simulated'],
    'split': [
      results['data'][f'{s}_events'] for s in ('train', 'validation', 'test')
    ],
    'fingerprint': results['data']['fingerprint'],
    'facets': {k: results['facets'][k] for k in ('writer', 'encoder')},
    'train_s': results['train_seconds_per_epoch'] * results['epochs'],
    **{k: results[k] for k in _KEPT},
  }
  with np.load(folder / 'ranks.npz') as ranks:
    test, users = ranks['test'], ranks['test_users']
  # Halves are ties; 65535 stands for all that is further down.
  doubled = np.minimum(test * 2, 65_535).astype(np.uint16)
  files = run_folder.RunFolder(str(log.folder))
  files.write_arrays('test_users.npz', {'users': users})
  files.write_arrays(f'{setting.key}.npz', {'doubled_ranks': doubled})
  files.write_json(f'{setting.key}.json', row)
  return row


def test_ranks(log: Log, row: dict[str, Any]) -> np.ndarray:
  """f64[test events] ranks of a finished row, in the order of the log."""
  with np.load(log.folder / f'{row["key"]}.npz') as stored:
    return stored['doubled_ranks'].astype(np.float64) / 2


def test_users(log: Log) -> np.ndarray:
  """i32[test events], who each rank is of."""
  with np.load(log.folder / 'test_users.npz') as stored:
    return stored['users']


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
  for path in filter(None, (log.events, log.items)):
    names[path] = os.path.basename(path)
  text = shlex.join(line[:-1])
  for path, name in names.items():
    text = text.replace(path, name)
  return text
