"""Folders that are built beside their place and renamed when they are whole.

A build that was killed leaves its folder behind; the next build there removes
it. A folder whose process lives is held by a lock, which the system frees with
the process, so that two builds at once never take each other's.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
import uuid

_PREFIX, _REMOVED = '.new-', '.removed-'


@contextlib.contextmanager
def new_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty folder in `parent`, removed at the end where it still is.

  Args:
    parent: made if it is missing; what killed builds have left in it goes.

  Yields:
    The folder.

  Raises:
    OSError: if it cannot be made.
  """
  parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    # No other process sees the folder before its lock is held.
    with _lock(parent):
      fresh = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
      held = stack.enter_context(_lock(fresh))
      if held:
        _sweep(parent)
    stack.callback(shutil.rmtree, fresh, ignore_errors=True)
    os.chmod(fresh, 0o755)
    yield fresh


def move_into_place(built: pathlib.Path, final: pathlib.Path) -> None:
  """Renames a folder to its place; where another was first, that one stays.

  Raises:
    OSError: if it cannot be renamed and there is none.
  """
  try:
    built.rename(final)
  except OSError:
    if not final.exists():
      raise


def remove(place: pathlib.Path) -> None:
  """Removes a folder: out of sight in one step, then file by file."""
  grave = place.with_name(f'{_REMOVED}{uuid.uuid4().hex}')
  with contextlib.suppress(FileNotFoundError):  # another process was first
    place.rename(grave)
  shutil.rmtree(grave, ignore_errors=True)


def _sweep(parent: pathlib.Path) -> None:
  """Removes what nobody is at work on."""
  for path in parent.glob(f'{_REMOVED}*'):
    shutil.rmtree(path, ignore_errors=True)
  for path in parent.glob(f'{_PREFIX}*'):
    with (
      contextlib.suppress(FileNotFoundError),
      _lock(path, wait=False) as mine,
    ):
      if mine:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: pathlib.Path, wait: bool = True) -> Iterator[bool]:
  """Locks a folder; False where another has it or folders have no locks.

  Some network file systems lock files only; nothing is swept there.
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      held = True
    except OSError:
      held = False
    yield held
  finally:
    os.close(descriptor)
