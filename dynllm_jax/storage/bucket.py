"""Folders in a bucket (`gs://...`): written there, or copied to and fro.

A bucket has whole objects alone: no renames, no locks, nothing to map. What
runs leave is written there directly, a file at a time. Prepared data are used
from a copy on the local disk, which lies where its path says what it is a copy
of, `<cache>/gs:/bucket/folder`. A folder that has been built is put into the
bucket file by file, and last a marker that names them: only then it is there.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any
import uuid

from dynllm_jax.storage import build_folder
from dynllm_jax.types import InputError

_SCHEME = 'gs://'
_HOP = 'gs:'  # the part of a local path that the bucket's name follows
_MARKER = 'COMMITTED'
_BLOCK_BYTES = 1 << 24

# A pathlib.Path, or an etils.epath.Path of a bucket, which has its methods.
Path = Any


def is_url(place: str | os.PathLike) -> bool:
  """Whether a place is in a bucket."""
  return str(place).startswith(_SCHEME)


def path(field: str, place: str) -> Path:
  """A local path, or one in a bucket.

  Raises:
    InputError: if the place has another scheme, or what reads buckets is not
      installed.
  """
  scheme, found, rest = place.partition('://')
  if not found:
    return _at_home(field, place)
  if scheme != 'gs' or not rest.strip('/'):
    raise InputError(
      f'{field}: {place!r} is not allowed; a local path or gs://BUCKET/FOLDER'
    )
  try:
    import gcsfs  # noqa: F401 (only whether it is there)
  except ImportError as error:
    raise InputError(
      f"{field}: {place!r} needs gcsfs; pip install 'dynllm_jax[gcs]'"
    ) from error
  from etils import epath
  import fsspec

  # Other machines write there as well: no listing may be remembered.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  # It warns at every call where it may not see what kind of bucket it is.
  logging.getLogger('gcsfs').setLevel(logging.ERROR)
  return epath.Path(place)


def cache() -> pathlib.Path:
  """The user's cache, `$XDG_CACHE_HOME/dynllm_jax`."""
  folder = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return _at_home('data.dir', folder) / 'dynllm_jax'


def _at_home(field: str, place: str) -> pathlib.Path:
  """A path whose `~` is replaced.

  Raises:
    InputError: if there is no such home.
  """
  try:
    return pathlib.Path(place).expanduser()
  except RuntimeError as error:
    raise InputError(
      f'{field}: {place!r} has no home folder ({error}); allowed: a path '
      'without ~, or one of a user who has a home'
    ) from error


def local(field: str, place: str) -> pathlib.Path:
  """The folder itself, or of a bucket's where its local copy belongs."""
  found = path(field, place)
  return cache() / place.rstrip('/') if is_url(place) else found


def origin(copy: pathlib.Path) -> Path | None:
  """What a local path is a copy of, None if of nothing."""
  if _HOP not in copy.parts:
    return None
  rest = copy.parts[copy.parts.index(_HOP) + 1 :]
  return path('data.dir', _SCHEME + '/'.join(rest))


def fetch(folder: pathlib.Path) -> bool:
  """Brings a folder and what it is a copy of, if of anything, in line.

  Where one of the two is missing it is copied from the other: a run may have
  ended before it put into the bucket what it had built.

  Args:
    folder: where the copy belongs.

  Returns:
    Whether the folder is on the disk now.

  Raises:
    InputError: if the bucket cannot be used.
  """
  if not (source := origin(folder)):
    return folder.exists()
  with errors(source):
    if folder.exists():
      if not (source / _MARKER).exists():
        publish(folder)
      return True
    try:
      names = json.loads((source / _MARKER).read_text())
    except FileNotFoundError:
      return False
    with build_folder.folder(folder.parent) as fresh:
      for name in names:
        if not (source / name).exists():
          raise InputError(
            f'{source / _MARKER} names {name}, which is not there; a sound '
            'copy is needed, or remove the marker to build it again'
          )
        _copy(source / name, fresh / name)
      build_folder.place(fresh, folder)
  return True


def publish(folder: pathlib.Path) -> None:
  """Puts a finished folder of files into the bucket that it is a copy of.

  Raises:
    InputError: if the bucket cannot be written; the folder stays.
  """
  if not (target := origin(folder)):
    return
  files = sorted(folder.iterdir())
  with errors(target):
    for file in files:
      _copy(file, target / file.name)
    (target / _MARKER).write_text(json.dumps([file.name for file in files]))


def fetch_file(field: str, url: str) -> str:
  """The path of a local copy of a file in a bucket, copied where it changed.

  Raises:
    InputError: if there is no such file or it cannot be read.
  """
  source = path(field, url)
  with errors(source):
    try:
      about = source.stat()
    except FileNotFoundError as error:
      raise InputError(
        f'{field}: {url} does not exist; it must be a file'
      ) from error
    state = f'{url} {about.length} {about.mtime}'
    folder = cache() / 'fetched' / hashlib.sha256(state.encode()).hexdigest()
    if not folder.exists():
      with build_folder.folder(folder.parent) as fresh:
        _copy(source, fresh / source.name)
        build_folder.place(fresh, folder)
  return str(folder / source.name)


def check_writable(field: str, folder: Path) -> None:
  """Stops where nothing can be written into a bucket's folder.

  Raises:
    InputError: with what the bucket answered.
  """
  probe = folder / f'.dynllm_jax-{uuid.uuid4().hex}'
  with errors(folder, field):
    probe.write_text('')
    probe.unlink()


def _copy(source: Path, target: Path) -> None:
  with source.open('rb') as old, target.open('wb') as new:
    shutil.copyfileobj(old, new, _BLOCK_BYTES)


@contextlib.contextmanager
def errors(place: Path, field: str = '') -> Iterator[None]:
  """What gcsfs, its authentication and the network raise, as one error."""
  try:
    yield
  except InputError:
    raise
  # They share no base class.
  except Exception as error:
    text = ' '.join(str(error).split())[:300] or type(error).__name__
    name = f'{field}: ' if field else ''
    raise InputError(
      f'{name}{place} cannot be used ({text}); allowed: a bucket that exists '
      'and may be read and written'
    ) from error
