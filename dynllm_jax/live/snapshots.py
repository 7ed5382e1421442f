"""Snapshots: the whole live state, so that a restart replays little.

A snapshot is one SafeTensors file that is written beside its place and renamed
when it is on the disk. It names the last batch of the journal that it holds,
and has a checksum of each array and of its record. The last two are kept: where
the newest is damaged the one before takes its place, and where there is none,
the run's checkpoint does; the journal has all that came after either. Each
journal of a run has snapshots of its own.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import hashlib
import json
import pathlib
from typing import Any
from typing import NamedTuple
import zlib

import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from dynllm_jax.live.journal import Tip
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import InputError

_VERSION = 1
_KEPT = 2
_PREFIX, _SUFFIX = 'snapshot-', '.safetensors'
_DIGITS = 15  # of a position in a file's name


class Snapshot(NamedTuple):
  """A live state as it is stored.

  Attributes:
    run: the name of the run whose parameters it has.
    tip: of the journal, the last batch that it holds.
    record: JSON values of the state.
    arrays: of the state, by name.
  """

  run: str
  tip: Tip
  record: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


def save(
  folder: pathlib.Path, snapshot: Snapshot, journal: str = ''
) -> pathlib.Path:
  """Writes a snapshot, whole or not at all, and removes the older ones.

  Args:
    folder: of the run's snapshots; made if it is missing.
    snapshot: the state.
    journal: what names its journal, '' for the run's own.

  Returns:
    The file.

  Raises:
    InputError: if it cannot be written; those that are there stay.
  """
  arrays = {
    name: np.asarray(array, order='C')
    for name, array in snapshot.arrays.items()
  }
  record = {
    'version': _VERSION,
    'run': snapshot.run,
    'position': snapshot.tip.position,
    'digest': snapshot.tip.digest.hex(),
    'state': dict(snapshot.record),
    'sums': {name: _checksum(array) for name, array in arrays.items()},
  }
  text = json.dumps(record)
  metadata = {'record': text, 'sum': str(zlib.crc32(text.encode()))}

  number = f'{snapshot.tip.position:0{_DIGITS}}'
  path = folder / f'{_PREFIX}{number}{_ending(journal)}'
  try:
    write_atomically(path, to_bytes(arrays, metadata))
    for old in list(_files(folder, journal))[_KEPT:]:
      old.unlink()
  except OSError as error:
    raise InputError(
      f'{path}: the snapshot cannot be written ({error}); allowed: a folder '
      'that can be written, on a disk with room'
    ) from error
  return path


def stored(
  folder: pathlib.Path,
  run: str,
  report: Callable[[str], None],
  journal: str = '',
) -> Iterator[Snapshot]:
  """The snapshots of a run and a journal that are whole, the newest first.

  Args:
    folder: of the run's snapshots; it may be missing.
    run: the run's name; snapshots of others are passed over.
    report: receives a line about each that is passed over.
    journal: as in `save`.
  """
  for path in _files(folder, journal):
    try:
      snapshot = _read(path)
    # safetensors raises a class of its own for a file that is cut short.
    except (
      OSError,
      ValueError,
      KeyError,
      safetensors.SafetensorError,
    ) as error:
      words = ' '.join(str(error).split())
      report(f'{path} is damaged ({words}); an older state takes its place')
      continue
    if snapshot.run == run:
      yield snapshot
    else:
      report(f'{path} is of another run, and is left alone')


def _files(folder: pathlib.Path, journal: str) -> Iterator[pathlib.Path]:
  """The files of a journal's snapshots, the newest first."""
  pattern = f'{_PREFIX}{"[0-9]" * _DIGITS}{_ending(journal)}'
  yield from sorted(folder.glob(pattern), reverse=True)


def _ending(journal: str) -> str:
  """How the names of a journal's snapshots end."""
  if not journal:
    return _SUFFIX
  return f'-{hashlib.sha256(journal.encode()).hexdigest()[:12]}{_SUFFIX}'


def _read(path: pathlib.Path) -> Snapshot:
  """A snapshot as it was saved.

  Raises:
    OSError, ValueError, KeyError, SafetensorError: if it is not.
  """
  with safetensors.safe_open(path, 'numpy') as file:
    metadata = file.metadata() or {}
    text = metadata['record']
    if metadata['sum'] != str(zlib.crc32(text.encode())):
      raise ValueError('its record is not as it was saved')
    record = json.loads(text)
    if record['version'] != _VERSION:
      raise ValueError(f'it is of version {record["version"]}')
    names = file.keys()
    arrays = {name: file.get_tensor(name) for name in names}

  if record['sums'] != {n: _checksum(array) for n, array in arrays.items()}:
    raise ValueError('an array is not as it was saved')
  tip = Tip(record['position'], bytes.fromhex(record['digest']))
  return Snapshot(record['run'], tip, record['state'], arrays)


def _checksum(array: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(array).ravel().view('u1').data)
