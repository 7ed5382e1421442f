"""Files that are replaced whole, or not at all."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile
from typing import IO


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a file by a complete one that is on the disk on return.

  The content is written to a hidden file beside it, which is then renamed: a
  reader, also after a crash, finds the old file or the new one, whole.

  Args:
    path: the file; folders that are missing above it are made.
    content: text is written as UTF-8.

  Raises:
    OSError: if it cannot be written; the old file stays.
  """
  if isinstance(content, str):
    content = content.encode()
  with replacing(path) as file:
    file.write(content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """As `write_atomically`, of a file that is written bit by bit.

  Args:
    path: the file, replaced when the block ends; if it raises, the old file
      stays.

  Yields:
    A file to write to.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.' + path.name)
  try:
    with os.fdopen(handle, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
  sync(path.parent)


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the list of names in a folder, is on the disk.

  Some network file systems cannot do this for a folder; nothing is done then.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError:
    if not path.is_dir():
      raise
  finally:
    os.close(descriptor)
