"""Files are replaced whole, or not at all."""

import os
import pathlib

import pytest

from dynllm_jax.storage import atomic
from tests.testing import scripts

WRITE = """
import pathlib, sys
from dynllm_jax.storage import atomic
print('', flush=True)
while True:
  for letter in 'ab':
    atomic.write_atomically(pathlib.Path(sys.argv[1]), letter * 3_000_000)
"""


def test_text_bytes_and_missing_folders(tmp_path):
  path = tmp_path / 'a' / 'file'
  atomic.write_atomically(path, 'é')
  assert path.read_bytes() == b'\xc3\xa9'
  atomic.write_atomically(path, b'\0')
  assert path.read_bytes() == b'\0'
  assert path.stat().st_mode & 0o777 == 0o644
  assert os.listdir(path.parent) == ['file']


def test_an_error_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  atomic.write_atomically(path, 'old')

  def fail(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(atomic.os, 'fsync', fail)
  with pytest.raises(OSError, match='No space'):
    atomic.write_atomically(path, 'new')
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['file']


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
  path = pathlib.Path(tmp_path, 'file')
  path.write_text('')
  for _ in range(3):
    with scripts.running(WRITE, path) as process:
      process.stdout.readline()
      before = path.stat().st_ino
      while path.stat().st_ino == before:
        assert process.poll() is None
    content = path.read_bytes()
    assert content in (b'a' * 3_000_000, b'b' * 3_000_000)
