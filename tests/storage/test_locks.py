"""Locks: one holder at a time, and a dead one holds nothing."""

import filelock
import pytest

from dynllm_jax.storage import locks
from tests.testing import scripts

HOLD = """
import pathlib, sys, time
from dynllm_jax.storage import locks
with getattr(locks, sys.argv[1])(pathlib.Path(sys.argv[2])) as held:
  print(held, flush=True)
  time.sleep(600)
"""


@pytest.mark.parametrize('kind', ['lock_file', 'lock_folder'])
def test_a_killed_process_lets_go(kind, tmp_path):
  path = tmp_path if kind == 'lock_folder' else tmp_path / 'lock'
  lock = getattr(locks, kind)
  with scripts.running(HOLD, kind, path) as holder:
    assert holder.stdout.readline() == 'True\n'
    with lock(path, wait=False) as held:
      assert not held
    scripts.kill(holder)
    with lock(path) as held:
      assert held


def test_a_lock_is_free_after_its_block(tmp_path):
  path = tmp_path / 'lock'
  with pytest.raises(ZeroDivisionError), locks.lock_file(path):
    with locks.lock_file(path, wait=False) as held:
      assert not held
    raise ZeroDivisionError
  with locks.lock_file(path, wait=False) as held:
    assert held
  # Others may be waiting for this very file.
  assert path.exists()


def test_a_file_system_without_locks_is_told_from_a_folder_without_rights(
  tmp_path, monkeypatch
):
  with pytest.raises(FileNotFoundError), locks.lock_file(tmp_path / 'a' / 'b'):
    pass

  def refuse(*args, **options):
    raise OSError(38, 'Function not implemented')

  monkeypatch.setattr(filelock, 'lock_descriptor', refuse)
  with pytest.raises(locks.Unsupported), locks.lock_file(tmp_path / 'lock'):
    pass
