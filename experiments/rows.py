"""Rows: one finished run of one system on one log, and where it is kept.

    experiments/results/rows/<log>/<system>-<key>.json   figures, command, commit
    experiments/results/rows/<log>/<system>-<key>.npz    ranks of test events

A row appears whole or not at all; a row that is there is never computed
again. Runs are commands of `dynllm_jax.main` in processes of their own, so
that each row can be repeated by hand.
"""

import dataclasses
import hashlib
import io
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
  """A log as an experiment names it.

  Attributes:
    name: of its config file in configs/.
    events, items: paths, '' where the config needs none.
  """
  name: str
  events: str = ''
  items: str = ''

  def flags(self) -> list[str]:
    """The command line's part that names the data."""
    paths = {'events': self.events, 'items': self.items}
    return [f'--config.data.{k}={v}' for k, v in paths.items() if v]


def parse_log(text: str) -> Log:
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
  return Log(name, events, items)


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is run: a system, fields of the configuration, a seed."""
  system: str
  fields: tuple[tuple[str, Any], ...] = ()
  seed: int = 0

  def flags(self) -> list[str]:
    """The command line's part that differs from the config file."""
    return [f'--config.{k}={v}' for k, v in (*self.fields, ('seed', self.seed))]

  def key(self) -> str:
    """A short hash of the setting."""
    text = json.dumps([self.system, sorted(self.fields), self.seed])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def command(log: Log, setting: Setting, workdir: str) -> list[str]:
  """The command of a run."""
  return [
      sys.executable, '-m', 'dynllm_jax.main',
      f'--config=configs/{log.name}.py:{setting.system}', *log.flags(),
      *setting.flags(), f'--workdir={workdir}']


def row_path(log: Log, setting: Setting) -> pathlib.Path:
  """Where the row of a setting is, or will be."""
  return RESULTS / 'rows' / log.name / f'{setting.system}-{setting.key()}.json'


def read(log: Log, setting: Setting) -> dict[str, Any] | None:
  """The finished row of a setting, None where there is none."""
  path = row_path(log, setting)
  return json.loads(path.read_text()) if path.exists() else None


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
  folder = workdir / log.name / f'{setting.system}-{setting.key()}'
  line = command(log, setting, str(folder))
  execute(line)
  results = json.loads((folder / 'results.json').read_text())
  row = {
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
  path = row_path(log, setting)
  ranks = np.load(folder / 'ranks.npz')
  # Halves are ties; 65535 stands for all that is further down.
  doubled = np.minimum(ranks['test'] * 2, 65_535).astype(np.uint16)
  content = io.BytesIO()
  np.savez_compressed(content, doubled_ranks=doubled)
  reporting.write_atomically(path.with_suffix('.npz'), content.getvalue())
  reporting.write_atomically(path, json.dumps(row, indent=2) + '\n')
  return row


def test_ranks(log: Log, setting: Setting) -> np.ndarray:
  """f64[test events] ranks of a finished row, in the order of the log."""
  with np.load(row_path(log, setting).with_suffix('.npz')) as stored:
    return stored['doubled_ranks'].astype(np.float64) / 2


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
