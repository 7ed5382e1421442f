"""Every module of the experiments imports, whether a test uses it or not."""

import pathlib
import subprocess
import sys

import dynllm_jax
import experiments
from tests.testing import ROOT

# The scripts for a peer's own Python import what this one may not have.
SCRIPT = """
import importlib, sys
from absl import flags

known = set(flags.FLAGS)
for name in sys.argv[1:]:
  try:
    importlib.import_module(f'experiments.{name}')
  except ModuleNotFoundError as error:
    if not (name.startswith('peer_') and error.name in ('recbole', 'torch')):
      raise
  # Commands have flags of the same names, which a process has only once.
  for flag in set(flags.FLAGS) - known:
    delattr(flags.FLAGS, flag)
"""


def test_every_module_imports():
  folder = pathlib.Path(experiments.__file__).parent
  names = sorted(path.stem for path in folder.glob('[!_]*.py'))
  assert {'overall', 'throughput', 'tpu_compile'} <= set(names)
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, *names],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr[-3000:]


def test_no_module_shares_its_name():
  names = lambda folder: {path.stem for path in folder.rglob('[!_]*.py')}
  ours = names(pathlib.Path(experiments.__file__).parent)
  assert not ours & names(pathlib.Path(dynllm_jax.__file__).parent)
  assert not ours & {*sys.stdlib_module_names, 'jax', 'numpy', 'absl'}
