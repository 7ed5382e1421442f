"""The command, run as a user runs it, at tiny width on the simulated log."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from tests.testing import ROOT

TINY = [
  f'--config.{field}'
  for field in (
    'model.dim=8',
    'model.time_dim=6',
    'model.num_neighbors=3',
    'model.distill.top_r=5',
    'facets.encoder.dim=16',
    'train.num_negatives=8',
    'eval.ks=(5,10)',
  )
]


def on_devices(count: int) -> dict[str, str]:
  """Variables of a process that is to see so many fake devices."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join(
      [
        os.environ.get('XLA_FLAGS', ''),
        f'--xla_force_host_platform_device_count={count}',
      ]
    ),
  }


def command(
  *args: str, cwd: pathlib.Path, expect: int = 0
) -> subprocess.CompletedProcess[str]:
  """Runs the command, with a cache of its own in `cwd`.

  Args:
    *args: of the command line.
    cwd: the folder that it is run in.
    expect: the exit status that it must have.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'dynllm_jax.main', *args],
    cwd=cwd,
    env={
      **os.environ,
      'XDG_CACHE_HOME': str(cwd / 'cache'),
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == expect, done.stderr[-3000:]
  return done


def tiny_command(
  *args: str,
  cwd: pathlib.Path,
  workdir: str,
  config: str = 'demo',
  expect: int = 0,
) -> subprocess.CompletedProcess[str]:
  """Runs the command with a file of configs/, for dynllm+text at tiny width."""
  return command(
    f'--config={ROOT}/configs/{config}.py',
    f'--workdir={workdir}',
    *TINY,
    *args,
    cwd=cwd,
    expect=expect,
  )


def one_error(done: subprocess.CompletedProcess[str]) -> str:
  """The text of the single error line that must end stderr."""
  assert 'Traceback' not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ')
  return last.removeprefix('error: ')


def read_json(folder: pathlib.Path, name: str = 'results.json') -> Any:
  """A JSON file of a run folder."""
  return json.loads((folder / name).read_text())


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a run folder's epochs."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]
