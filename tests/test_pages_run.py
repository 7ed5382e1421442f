"""Every command of README and of docs/ runs as it stands there.

A page is read from its beginning in a folder of its own with a small log,
`events.csv` and `items.csv`: shell blocks by bash, Python blocks as one
program. `configs/` of that folder has small versions of the files of the same
names, a budget of an hour is one of seconds, a port is a free one, and what
`pip install` would bring is there already. `NOT_RUN` has what is left out, and
why. All of that takes many minutes, so that it is done with
--all-combinations.
"""

import itertools
import os
import pathlib
import re
import socket
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from tests.testing import live_runs
from tests.testing import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# The beginning of a block that is left out, and why.
NOT_RUN = {
  'python -m dynllm_jax.main --config=FILE[:SYSTEM]': 'a usage, no command',
  'gcloud compute': 'needs a Cloud TPU',
  "pip install -e '.[cuda]'": 'needs machines with GPUs, and Slurm',
  "pip install -e '.[experiments]'": 'hours; tests/experiments runs parts',
  'python -m experiments.remote_facets': 'needs a model; tests/experiments',
  '--config.mesh.data=4': 'needs eight devices',
  'make test-models': 'fetches models of 400 MB',
  'make test-server': 'builds llama.cpp',
  'python -m dynllm_jax.main --config=configs/demo.py --mode=facets': (
    'fetches a model from the Hugging Face Hub; tests/text has tiny ones'
  ),
  'python -m dynllm_jax.main --config=configs/event_log.py --mode=facets': (
    'fetches a model from the Hugging Face Hub; tests/text has tiny ones'
  ),
  'shop = dynllm_jax.Recommender.restore(\n  ': (
    'needs a PostgreSQL server; tests/live starts one'
  ),
  'reader = dynllm_jax.Recommender.restore(\n  ': (
    'needs a PostgreSQL server; tests/live starts one'
  ),
  '--mode=serve --workdir=runs/shop --journal=postgresql': (
    'needs a PostgreSQL server; tests/live starts one'
  ),
}
# Formulas, drawings and listings are no commands.
_COMMAND = re.compile(
  r'(?:\$ )?(?:(?:python3?|pip|dynllm|make|head|cat|curl|export|gcloud) |--)'
)
# The configuration of the folder: that of the package, but small.
_CONFIG = """
import runpy

from dynllm_jax import config as config_lib

published = runpy.run_path({path!r})['get_config']


def get_config(arg=''):
  config = published(arg or {system!r})
  config_lib.set_known(
    config.model, dim=8, time_dim=6, num_neighbors=3, distill__top_r=5, depth=3
  )
  config.train.update(batch_size=64, num_epochs=1)
  config.facets.encoder.dim = 16
  return config
"""


class Block(NamedTuple):
  """A block of a page, with the language that its fence names."""

  language: str
  text: str

  @property
  def reason(self) -> str:
    """Why it is not run, '' if it is."""
    found = (NOT_RUN[key] for key in NOT_RUN if self.text.startswith(key))
    return next(found, '')


def blocks(page: pathlib.Path) -> list[Block]:
  """The blocks of a page that are commands or programs."""
  text = page.read_text(encoding='utf-8')
  found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
  return [
    Block(language, text)
    for language, text in found
    if language or _COMMAND.match(text)
  ]


def make_folder(path: pathlib.Path, system: str) -> pathlib.Path:
  """A folder as that of a new user."""
  (path / 'configs').mkdir()
  for name in ('event_log.py', 'demo.py'):
    published = str(ROOT / 'configs' / name)
    text = _CONFIG.format(path=published, system=system)
    (path / 'configs' / name).write_text(text)
  live_runs.write_log(path)
  # Long enough for the thresholds of a new user; docs/data.md chooses rows by
  # the last two columns.
  rng = np.random.default_rng(0)
  more = itertools.cycle(['buy,5', 'view,3', 'buy,4', 'gift,1'])
  rows = [
    f'u{rng.integers(live_runs.NUM_USERS)},b{rng.integers(live_runs.NUM_ITEMS)},'
    f'{live_runs.START + 3600 * n},{next(more)}'
    for n in range(2_400)
  ]
  text = '\n'.join(['user_id,item_id,timestamp,kind,rating', *rows, ''])
  (path / 'events.csv').write_text(text)
  return path


def run(words: list[str], folder: pathlib.Path) -> str:
  """What a command prints; it must succeed."""
  done = subprocess.run(
    words,
    cwd=folder,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
      'XDG_CACHE_HOME': str(folder / 'cache'),
    },
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  assert not done.returncode, f'{words[-1]}\n{done.stdout}\n{done.stderr}'
  return done.stdout


def run_shell(text: str, folder: pathlib.Path) -> str:
  """What a shell block prints."""
  if lines := re.findall(r'^\$ (.*)$', text, re.MULTILINE):
    text = '\n'.join(lines)  # what stands between them was printed
  if text.startswith('--'):
    check = 'dynllm --mode=check --config=configs/event_log.py'
    check += ' --config.data.events=events.csv'
    text = re.sub('^--', f'{check} --', text, flags=re.MULTILINE)
  text = re.sub(r'^pip .*$', '', text, flags=re.MULTILINE)
  text = text.replace('--minutes=60', '--minutes=0.05')
  if ' &\n' in text:  # whatever fails, the server must not go on
    with socket.create_server(('127.0.0.1', 0)) as free:
      text = text.replace('8000', str(free.getsockname()[1]))
    text = f"trap 'kill $! || true' ERR\n{text}\nkill $!; wait $! || true"
  return run(['bash', '-euo', 'pipefail', '-c', text], folder)


def run_page(page: pathlib.Path, folder: pathlib.Path) -> None:
  """Runs the blocks of a page in order."""
  program = ''
  for block in blocks(page):
    if block.reason:
      continue
    if block.language == 'python':
      run([sys.executable, '-c', program + block.text], folder)
      # A later block goes on with what this one imported and opened.
      kept = re.findall(
        '^(?:import|from|shop =) .*\n', block.text, re.MULTILINE
      )
      program += ''.join(kept)
    else:
      run_shell(block.text, folder)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_what_is_left_out_is_still_there(page):
  """And no block of a program is in a language that nothing here runs."""
  assert {block.language for block in blocks(page)} <= {'', 'sh', 'python'}
  everything = [block.text for page in PAGES for block in blocks(page)]
  for beginning in NOT_RUN:
    assert any(text.startswith(beginning) for text in everything), beginning


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_experiment_has_the_flags_that_it_is_called_with(page):
  text = re.sub(r'\s*\\\n\s*', ' ', page.read_text(encoding='utf-8'))
  for name, words in re.findall(r'-m experiments\.(\w+)([^\n`]*)', text):
    source = (ROOT / 'experiments' / f'{name}.py').read_text(encoding='utf-8')
    for flag in re.findall(r'--(\w+)', words):
      assert re.search(rf'(?:\(\s*|--)\W?{flag}\b', source), (name, flag)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tmp_path, request):
  if not request.config.getoption('all_combinations'):
    pytest.skip('takes minutes: --all-combinations')
  folder = make_folder(tmp_path, 'dynllm+text+counts')
  train = (
    'dynllm --config=configs/event_log.py{} --workdir=runs/{}'
    ' --config.data.events=events.csv --config.data.items=items.csv'
  )
  if page.stem == 'runs':
    run_shell(train.format(':mf', 'a'), folder)
    run_shell(train.format(':popularity', 'b'), folder)
  elif page.stem in ('live', 'serving'):
    run_shell(train.format('', 'shop'), folder)
  run_page(page, folder)
