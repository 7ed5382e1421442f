"""Locks between processes, which the system frees when their holder dies.

`filelock.lock_descriptor` takes the lock of the operating system (`flock`) and
nothing else. filelock's `FileLock` is not used: where a file system has no
`flock` it falls back to a lock that exists as long as its file does, and a
killed process would leave that behind; nor can it lock a folder.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib

import filelock

_POLL_SECONDS = 0.01  # a store's lock is held for milliseconds


class Unsupported(OSError):
  """The file system has no locks, or none for folders."""


def lock_file(
  path: pathlib.Path, wait: bool = True
) -> contextlib.AbstractContextManager[bool]:
  """Holds the lock of a file within a `with` block.

  Args:
    path: the file, made if it is missing and never removed: a process that
      still waits for a removed file would not keep out those that made a new
      one.
    wait: wait while another process holds the lock.

  Returns:
    A context that gives whether the lock is held; it always is after waiting.

  Raises:
    Unsupported: on entry, if the file system has no locks.
    OSError: on entry, if the file cannot be opened for writing.
  """
  return _lock(path, os.O_RDWR | os.O_CREAT, wait)


def lock_folder(
  path: pathlib.Path, wait: bool = True
) -> contextlib.AbstractContextManager[bool]:
  """Holds the lock of a folder within a `with` block.

  The lock is the folder's own, so that no file is left in it and the lock
  stays with it when it is renamed.

  Args:
    path: the folder, which must exist.
    wait: wait while another process holds the lock.

  Returns:
    A context that gives whether the lock is held.

  Raises:
    Unsupported: on entry, if the file system locks no folders; some network
      file systems do not.
    OSError: on entry, if the folder cannot be opened.
  """
  return _lock(path, os.O_RDONLY | os.O_DIRECTORY, wait)


@contextlib.contextmanager
def _lock(path: pathlib.Path, flags: int, wait: bool) -> Iterator[bool]:
  descriptor = os.open(path, flags, 0o666)
  try:
    try:
      held = filelock.lock_descriptor(
        descriptor, blocking=wait, poll_interval=_POLL_SECONDS
      )
    except OSError as error:
      raise Unsupported(error.errno, error.strerror, str(path)) from error
    yield held
  finally:
    os.close(descriptor)  # which frees the lock
