"""docs/serving.md tells the truth: its commands run as they stand."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.testing import ROOT

TEXT = (ROOT / 'docs' / 'serving.md').read_text(encoding='utf-8')


def block(section: str, language: str) -> str:
  """The first block of a language in a section of the page."""
  part = TEXT.split(f'\n## {section}\n')[1].split('\n## ')[0]
  return re.search(rf'```{language}\n(.*?)```', part, re.DOTALL)[1]


@pytest.fixture
def folder(run, tmp_path):
  """A folder with `runs/shop`, and what its commands are called with."""
  shutil.copytree(run, tmp_path / 'runs' / 'shop')
  return tmp_path


def shell(script: str, folder: pathlib.Path) -> str:
  """What a script prints."""
  done = subprocess.run(
    ['bash', '-euc', script],
    cwd=folder,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    },
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_three_lines_of_python(folder, capsys):
  with contextlib.chdir(folder):
    exec(block('Three lines of Python', 'python'), {})
  titles = capsys.readouterr().out.splitlines()[-1]
  assert len(eval(titles)) == 5


def test_three_commands_and_the_end(folder):
  """One process of its own: the server, which SIGTERM ends with a snapshot."""
  if shutil.which('curl') is None:
    pytest.skip('there is no curl')
  script = block('Three commands', 'sh').replace('8000', '18765')
  out = shell(
    # Whatever fails, the server must not go on.
    f"trap 'kill $! || true' ERR\n{script}\n"
    f'kill -{signal.SIGTERM.value} $!; wait $! || true',
    folder,
  )
  # Answers have no newline of their own, and the server says lines too.
  observed, recommended = (
    json.JSONDecoder().raw_decode(out[match.start() :])[0]
    for match in re.finditer(r'\{"(?:events|user)"', out)
  )
  assert (observed['events'], observed['position']) == (1, 1)
  assert len(recommended['items']) == 5
  assert list((folder / 'runs' / 'shop' / 'live').glob('snapshot-*'))


def test_all_users_and_line_by_line(folder):
  out = shell(block('Line by line', 'sh'), folder)
  answers = [json.loads(line) for line in out.splitlines()]
  asked = re.findall(r'^\{"(\w+)"', block('Line by line', 'sh'), re.MULTILINE)
  assert [next(iter(answer)) for answer in answers] == asked
