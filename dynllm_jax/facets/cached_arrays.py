"""A folder of arrays that is made once, whole or not at all, and checked.

`sums.json` in it has the length and the checksum of each file, so that damage
is found; a damaged folder is made again.
"""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
import json
import pathlib
from typing import Any
from typing import NamedTuple
import zlib

import numpy as np

from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage import build_folder

_ABOUT = 'about.json'
_SUMS = 'sums.json'


class CachedArrays(NamedTuple):
  """What a folder holds.

  Attributes:
    arrays: by name, mapped from disk.
    about: what was remembered about them, JSON values.
    folder: where they are.
  """

  arrays: dict[str, np.ndarray]
  about: dict[str, Any]
  folder: pathlib.Path


def key(*identities: Any) -> str:
  """The name of a folder: a hash of all that its content depends on.

  Args:
    *identities: JSON values.
  """
  text = json.dumps(identities, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def load_or_make(
  folder: pathlib.Path,
  names: Sequence[str],
  make: Callable[[pathlib.Path], dict[str, Any]],
  report: Callable[[str], None],
) -> CachedArrays:
  """Loads a folder; makes it first where it is missing or damaged.

  Args:
    folder: its final place.
    names: the arrays to load; `a` is the file `a.npy`.
    make: writes the files into an empty folder and returns what to remember.
    report: takes a line if the folder is damaged.
  """
  if bucket_copy.fetch_folder(folder):
    damage = _damage(folder)
    if not damage:
      return CachedArrays(*_load(folder, names), folder)
    report(f'{folder}: {damage}; building it again')
    build_folder.remove(folder)

  with build_folder.new_folder(folder.parent) as fresh:
    (fresh / _ABOUT).write_text(json.dumps(make(fresh), indent=1))
    sums = {path.name: _sum(path) for path in sorted(fresh.iterdir())}
    (fresh / _SUMS).write_text(json.dumps(sums, indent=1))
    # Loaded before it is moved: what is mapped stays readable, whichever of
    # two processes comes first and whatever another one does to the folder.
    arrays, about = _load(fresh, names)
    build_folder.move_into_place(fresh, folder)
  bucket_copy.publish_folder(folder)
  return CachedArrays(arrays, about, folder)


def _load(
  folder: pathlib.Path, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays, and what was remembered about them."""
  about = json.loads((folder / _ABOUT).read_text())
  return {n: np.load(folder / f'{n}.npy', mmap_mode='r') for n in names}, about


def _damage(folder: pathlib.Path) -> str:
  """What is wrong with a folder, '' if nothing."""
  try:
    for name, expected in json.loads((folder / _SUMS).read_text()).items():
      if _sum(folder / name) != expected:
        return f'{name} is not as it was written'
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f'{type(error).__name__}: {error}'
  return ''


def _sum(path: pathlib.Path) -> list[int]:
  """Length in bytes and checksum of a file."""
  length = checksum = 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 20):
      length += len(block)
      checksum = zlib.crc32(block, checksum)
  return [length, checksum]
