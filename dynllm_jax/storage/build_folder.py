"""Folders that are built beside their place and renamed when they are whole.

A build that was killed leaves its folder behind, and the next build in the
same place removes it. Every build holds the lock of its folder, which the
system frees when the process dies, so that two builds at once never remove
each other's folder.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import tempfile
import uuid

from dynllm_jax.storage import atomic
from dynllm_jax.storage import locks

_PREFIX, _REMOVED = '.new-', '.removed-'


@contextlib.contextmanager
def new_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty folder in `parent`, removed at the end if it is still there.

  Args:
    parent: made if it is missing. What killed builds left in it is removed.

  Yields:
    The folder.

  Raises:
    OSError: if it cannot be made.
  """
  parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    # While the parent is locked no other process looks for folders to remove:
    # none sees the new one before its lock is held.
    with _lock(parent):
      fresh = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
      if stack.enter_context(_lock(fresh)):
        _remove_leftovers(parent)
    stack.callback(shutil.rmtree, fresh, ignore_errors=True)
    os.chmod(fresh, 0o755)
    yield fresh


def move_into_place(built: pathlib.Path, final: pathlib.Path) -> None:
  """Renames a folder to its place; where another was first, that one stays.

  All its files are on the disk before: a power cut leaves the whole folder in
  its place, or none.

  Raises:
    OSError: if it cannot be renamed and there is no folder in its place.
  """
  for path in built.rglob('*'):
    atomic.sync(path)
  atomic.sync(built)
  try:
    built.rename(final)
  except OSError:
    if not final.exists():
      raise
  atomic.sync(final.parent)


def remove(place: pathlib.Path) -> None:
  """Removes a folder: out of sight in one step, then file by file."""
  grave = place.with_name(f'{_REMOVED}{uuid.uuid4().hex}')
  with contextlib.suppress(FileNotFoundError):  # another process was first
    place.rename(grave)
  shutil.rmtree(grave, ignore_errors=True)


def _remove_leftovers(parent: pathlib.Path) -> None:
  """Removes the folders of killed builds and removals."""
  for path in parent.glob(f'{_REMOVED}*'):
    shutil.rmtree(path, ignore_errors=True)
  for path in parent.glob(f'{_PREFIX}*'):
    with _lock(path, wait=False) as held:
      if held:  # nobody builds in it
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: pathlib.Path, wait: bool = True) -> Iterator[bool]:
  """Locks a folder where that can be done.

  Yields:
    False where another process holds the lock, the folder is gone, or its file
    system has no locks for folders; nothing is removed then.
  """
  with contextlib.ExitStack() as stack:
    try:
      held = stack.enter_context(locks.lock_folder(path, wait))
    except OSError:
      held = False
    yield held
