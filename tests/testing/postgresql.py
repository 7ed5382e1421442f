"""A PostgreSQL server of a test's own, from the system's package."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

_BINARIES = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'))
_SECONDS = 30


@contextlib.contextmanager
def server() -> Iterator[str]:
  """A fresh server on a Unix socket; skips the test where there is none.

  PostgreSQL refuses to run as root, and then runs as the user whom its package
  has made.

  Yields:
    SQLAlchemy's URL of an empty database.
  """
  if not _BINARIES:
    pytest.skip('no PostgreSQL server (Debian: apt-get install postgresql)')
  user = 'postgres' if os.getuid() == 0 else None
  folder = pathlib.Path(tempfile.mkdtemp(prefix='postgresql'))
  if user:
    shutil.chown(folder, user)
  how = {'user': user, 'stdout': subprocess.DEVNULL, 'cwd': folder}
  initdb = [_BINARIES[-1] / 'initdb', '-D', folder / 'data', '-U', 'test']
  subprocess.run(
    [*initdb, '-A', 'trust', '--no-sync'],
    check=True,
    timeout=_SECONDS,
    **how,
  )

  postgres = [_BINARIES[-1] / 'postgres', '-D', folder / 'data']
  with subprocess.Popen(
    [*postgres, '-k', folder, '-h', ''], stderr=subprocess.DEVNULL, **how
  ) as process:
    try:
      _wait(folder, process)
      yield f'postgresql+psycopg://test@/postgres?host={folder}'
    finally:
      process.terminate()
      process.wait(_SECONDS)
      shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: pathlib.Path, process: subprocess.Popen) -> None:
  """Waits until the server takes connections."""
  ready = [_BINARIES[-1] / 'pg_isready', '-q', '-h', folder]
  for _ in range(10 * _SECONDS):
    if subprocess.run(ready, check=False, timeout=_SECONDS).returncode == 0:
      return
    assert process.poll() is None, 'the server ended'
    time.sleep(0.1)
  raise AssertionError('the server takes no connections')
