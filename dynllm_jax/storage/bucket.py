"""Paths in a bucket (`gs://...`), and where their local copies are.

A bucket has only whole objects: no renames, no locks, and no file can be
mapped into memory. Run folders are written there directly, a file at a time.
Prepared data are used from a local copy whose path names its origin,
`<cache>/gs:/bucket/folder`; bucket_copy.py copies both ways.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import pathlib
from typing import Any
import uuid

from dynllm_jax import checks
from dynllm_jax.types import InputError

_SCHEME = 'gs://'
_COPY_OF = 'gs:'  # in a local path; the bucket's name follows it

# A pathlib.Path, or for a bucket an etils.epath.Path with the same methods.
Path = Any


def is_url(place: str | os.PathLike) -> bool:
  """Whether a place is in a bucket."""
  return str(place).startswith(_SCHEME)


def open_path(field: str, place: str) -> Path:
  """A path on the local disk or in a bucket.

  Args:
    field: the config's field or flag, for messages.
    place: a local path, whose `~` is replaced, or `gs://BUCKET/FOLDER`.

  Raises:
    InputError: if the place has another scheme, or gcsfs, which reads buckets,
      is not installed.
  """
  scheme, found, rest = place.partition('://')
  if not found:
    return _at_home(field, place)
  if scheme != 'gs' or not rest.strip('/'):
    raise checks.not_allowed(field, place, 'a local path or gs://BUCKET/FOLDER')
  try:
    import gcsfs  # noqa: F401 (only whether it is there)
  except ImportError as error:
    raise InputError(
      f"{field}: {place!r} needs gcsfs; pip install 'dynllm_jax[gcs]'"
    ) from error
  from etils import epath
  import fsspec

  # Other machines write there as well, so no listing may be cached.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  # Without permission to read the bucket's kind it warns at every call.
  logging.getLogger('gcsfs').setLevel(logging.ERROR)
  return epath.Path(place)


def cache_folder() -> pathlib.Path:
  """The user's cache, `$XDG_CACHE_HOME/dynllm_jax`."""
  folder = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return _at_home('config.data.dir', folder) / 'dynllm_jax'


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


def local_path(field: str, place: str) -> pathlib.Path:
  """A local folder itself; for one in a bucket, where its local copy is."""
  found = open_path(field, place)
  return cache_folder() / place.rstrip('/') if is_url(place) else found


def origin(copy: pathlib.Path) -> Path | None:
  """The path in a bucket that a local path is a copy of; None if of none."""
  if _COPY_OF not in copy.parts:
    return None
  rest = copy.parts[copy.parts.index(_COPY_OF) + 1 :]
  return open_path('config.data.dir', _SCHEME + '/'.join(rest))


def check_writable(field: str, folder: Path) -> None:
  """Stops where nothing can be written into a bucket's folder.

  Raises:
    InputError: with what the bucket answered.
  """
  probe = folder / f'.dynllm_jax-{uuid.uuid4().hex}'
  with report_errors(folder, field):
    probe.write_text('')
    probe.unlink()


@contextlib.contextmanager
def report_errors(place: Path, field: str = '') -> Iterator[None]:
  """Turns what gcsfs, its authentication and the network raise into one error.

  Args:
    place: what was read or written, for the message.
    field: the config's field or flag, for the message; '' for none.

  Raises:
    InputError: with what the bucket answered.
  """
  try:
    yield
  except InputError:
    raise
  # These errors share no base class.
  except Exception as error:
    text = ' '.join(str(error).split())[:300] or type(error).__name__
    name = f'{field}: ' if field else ''
    raise InputError(
      f'{name}{place} cannot be used ({text}); allowed: a bucket that exists '
      'and may be read and written'
    ) from error
