"""Folders built beside their place: what killed builds leave behind goes."""

import pathlib

import filelock
import pytest

from dynllm_jax.storage import build_folder
from tests.testing import scripts

BUILD = """
import pathlib, sys, time
from dynllm_jax.storage import build_folder
with build_folder.new_folder(pathlib.Path(sys.argv[1])) as folder:
  (folder / 'half').write_text('x')
  print(folder, flush=True)
  time.sleep(600)
"""


def folder_of(process):
  """The folder that a process builds in, once it does."""
  return pathlib.Path(process.stdout.readline().strip())


def test_a_folder_is_placed_or_goes(tmp_path):
  parent = tmp_path / 'a' / 'b'
  with build_folder.new_folder(parent) as folder:
    (folder / 'file').write_text('x')
    folder.rename(parent / 'done')
  assert [path.name for path in parent.iterdir()] == ['done']
  assert (parent / 'done').stat().st_mode & 0o777 == 0o755
  with (
    pytest.raises(ZeroDivisionError),
    build_folder.new_folder(parent) as folder,
  ):
    raise ZeroDivisionError
  assert [path.name for path in parent.iterdir()] == ['done']


def test_the_dead_are_swept_and_the_living_are_not(tmp_path):
  with (
    scripts.running(BUILD, tmp_path) as dead,
    scripts.running(BUILD, tmp_path) as living,
  ):
    left, kept = folder_of(dead), folder_of(living)
    assert left.exists() and kept.exists()
    scripts.kill(dead)
    assert left.exists()
    (tmp_path / '.removed-x').mkdir()
    with (
      build_folder.new_folder(tmp_path) as mine,
      build_folder.new_folder(tmp_path) as other,
    ):
      assert set(tmp_path.iterdir()) == {kept, mine, other}
    assert (kept / 'half').exists()


def test_where_folders_have_no_locks_nothing_is_swept(tmp_path, monkeypatch):
  (tmp_path / '.new-x').mkdir()

  def refuse(*args, **options):
    raise OSError(9, 'Bad file descriptor')

  monkeypatch.setattr(filelock, 'lock_descriptor', refuse)
  with build_folder.new_folder(tmp_path):
    assert (tmp_path / '.new-x').exists()


def test_files_are_on_the_disk_before_their_folder_is_in_place(
  tmp_path, monkeypatch
):
  """A power cut may otherwise leave a folder of empty files."""
  final, synced = tmp_path / 'done', []
  monkeypatch.setattr(
    build_folder.atomic,
    'sync',
    lambda path: synced.append((path.name, final.exists())),
  )
  with build_folder.new_folder(tmp_path) as folder:
    (folder / 'file').write_text('x')
    build_folder.move_into_place(folder, final)
  assert synced == [
    ('file', False),
    (folder.name, False),
    (tmp_path.name, True),
  ]


def test_a_folder_that_was_first_stays(tmp_path):
  (tmp_path / 'done').mkdir()
  (tmp_path / 'done' / 'first').write_text('')
  with build_folder.new_folder(tmp_path) as folder:
    (folder / 'second').write_text('')
    build_folder.move_into_place(folder, tmp_path / 'done')
  assert [path.name for path in tmp_path.rglob('*')] == ['done', 'first']


def test_remove(tmp_path):
  (tmp_path / 'place').mkdir()
  (tmp_path / 'place' / 'file').write_text('x')
  build_folder.remove(tmp_path / 'place')
  build_folder.remove(tmp_path / 'place')
  assert not list(tmp_path.iterdir())
