"""Copies between buckets and the local disk.

Prepared data are used from a copy on the local disk, and a folder that was
built here is copied into the bucket file by file. Its marker, which names all
files, is written last: without it the bucket does not have the folder.
"""

import hashlib
import json
import pathlib
import shutil

from dynllm_jax.storage import bucket
from dynllm_jax.storage import build_folder
from dynllm_jax.types import InputError

_MARKER = 'COMMITTED'
_BLOCK_BYTES = 1 << 24


def fetch_folder(folder: pathlib.Path) -> bool:
  """Copies a folder from its bucket, or into it, where one side lacks it.

  The bucket may lack it because a run ended before it could copy what it had
  built. Does nothing for a folder that is not the copy of a bucket's.

  Args:
    folder: the local folder.

  Returns:
    Whether the folder is on the disk now.

  Raises:
    InputError: if the bucket cannot be used.
  """
  if not (source := bucket.origin(folder)):
    return folder.exists()

  with bucket.report_errors(source):
    if folder.exists():
      if not (source / _MARKER).exists():
        publish_folder(folder)
      return True
    try:
      names = json.loads((source / _MARKER).read_text())
    except FileNotFoundError:
      return False

    with build_folder.new_folder(folder.parent) as fresh:
      for name in names:
        if not (source / name).exists():
          raise InputError(
            f'{source / _MARKER} names {name}, which is not there; a sound '
            'copy is needed, or remove the marker to build it again'
          )
        _copy(source / name, fresh / name)
      build_folder.move_into_place(fresh, folder)
  return True


def publish_folder(folder: pathlib.Path) -> None:
  """Copies a finished folder into the bucket that it is the copy of.

  Does nothing for a folder that is not the copy of a bucket's.

  Raises:
    InputError: if the bucket cannot be written; the folder stays.
  """
  if not (target := bucket.origin(folder)):
    return
  # A killed `write_atomically` may have left a hidden file behind.
  files = sorted(
    file for file in folder.iterdir() if not file.name.startswith('.')
  )
  with bucket.report_errors(target):
    for file in files:
      _copy(file, target / file.name)
    (target / _MARKER).write_text(json.dumps([file.name for file in files]))


def fetch_file(field: str, url: str) -> str:
  """The path of a local copy of a file in a bucket.

  The file is copied if there is no copy of this size and time of change.

  Raises:
    InputError: if there is no such file or it cannot be read.
  """
  source = bucket.open_path(field, url)
  with bucket.report_errors(source):
    try:
      about = source.stat()
    except FileNotFoundError as error:
      raise InputError(
        f'{field}: {url} does not exist; it must be a file'
      ) from error

    state = f'{url} {about.length} {about.mtime}'
    folder = (
      bucket.cache_folder()
      / 'fetched'
      / hashlib.sha256(state.encode()).hexdigest()
    )
    if not folder.exists():
      with build_folder.new_folder(folder.parent) as fresh:
        _copy(source, fresh / source.name)
        build_folder.move_into_place(fresh, folder)
  return str(folder / source.name)


def _copy(source: bucket.Path, target: bucket.Path) -> None:
  with source.open('rb') as old, target.open('wb') as new:
    shutil.copyfileobj(old, new, _BLOCK_BYTES)
