"""Rows: one finished run of one system on one log, and where it is kept.

    experiments/results/rows/<experiment>/<log>/
        <system>-<key>.json   figures, command, commit
        <system>-<key>.npz    ranks of test events
        test_users.npz        whose events they are

A row appears whole or not at all; a row that is there is never computed
again. Runs are commands of `dynllm_jax.main` in processes of their own, so
that each row can be repeated by hand.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import numpy as np

from dynllm_jax import reporting
from dynllm_jax.types import InputError

RESULTS = pathlib.Path(__file__).parent / 'results'
_KEPT = (
    'validation', 'test', 'train_events_per_s', 'train_seconds_per_epoch',
    'rank_events_per_s', 'test_seconds', 'epochs', 'best_epoch', 'parameters',
    'peak_memory_bytes', 'evaluation', 'commit', 'machine')


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
        f'--logs: no configs/{name}.py; allowed: {", ".join(known)}')
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


def command(log: Log, setting: Setting, workdir: str) -> list[str]:
  """The command of a run."""
  return [
      sys.executable, '-m', 'dynllm_jax.main',
      f'--config=configs/{log.name}.py:{setting.system}', *log.flags(),
      *setting.flags(), f'--workdir={workdir}']


def read(log: Log, setting: Setting) -> dict[str, Any] | None:
  """The finished row of a setting, None where there is none."""
  path = log.folder / f'{setting.key}.json'
  return json.loads(path.read_text()) if path.exists() else None


def finished(log: Log) -> dict[str, list[dict[str, Any]]]:
  """All finished rows, by system, in the order of their seeds.

  Raises:
    InputError: if a system has two rows of one seed.
  """
  found = {}
  for path in sorted(log.folder.glob('*.json')):
    row = json.loads(path.read_text())
    if 'test' in row:
      found.setdefault(row['system'], []).append(row)
  for system, some in found.items():
    some.sort(key=lambda row: row['seed'])
    seeds = [row['seed'] for row in some]
    if len(set(seeds)) < len(seeds):
      raise InputError(
          f'{log.folder}: {system} has two rows of one seed, {seeds}; '
          'allowed: one, of the tuned setting')
  return found


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
  folder = workdir / log.name / setting.key
  line = command(log, setting, str(folder))
  execute(line)
  results = json.loads((folder / 'results.json').read_text())
  row = {
      'key': setting.key,
      'log': log.name,
      'system': setting.system,
      'seed': setting.seed,
      'fields': dict(setting.fields),
      'command': _public(line, log),
      'config_hash': hashlib.sha256(
          (folder / 'config.json').read_bytes()).hexdigest()[:12],
      'source': results['data']['source'],
      'simulated': results['data']['simulated'],
      'split': [results['data'][f'{s}_events']
                for s in ('train', 'validation', 'test')],
      'fingerprint': results['data']['fingerprint'],
      'facets': {k: results['facets'][k] for k in ('writer', 'encoder')},
      'train_s': results['train_seconds_per_epoch'] * results['epochs'],
      **{k: results[k] for k in _KEPT}}
  with np.load(folder / 'ranks.npz') as ranks:
    test, users = ranks['test'], ranks['test_users']
  # Halves are ties; 65535 stands for all that is further down.
  doubled = np.minimum(test * 2, 65_535).astype(np.uint16)
  files = reporting.RunFolder(str(log.folder))
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
  reporting.say('$ ' + shlex.join(line))
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
