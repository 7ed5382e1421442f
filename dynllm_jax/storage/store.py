"""Results that were dear to compute, kept by what they were computed from.

    <folder>/about.json    what wrote the store
    <folder>/payload.bin   payloads, one after the other
    <folder>/index.bin     an entry a payload: 16 bytes of key, u64 offset,
                           u32 length, u32 check sum over all of these and
                           the payload
    <folder>/lock          held by whoever writes
    <folder>/turn          held by whoever computes missing rows (fill_lock.py)

Files only grow. Payloads are on the disk before their entries are written, so
an entry that is there has its payload; what a killed writer leaves behind the
last whole entry is cut off by the next one.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any
import zlib

import numpy as np

from dynllm_jax.storage import locks
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import InputError

_KEY_BYTES = 16
_ENTRY = np.dtype(
  [('key', '<u8', 2), ('offset', '<u8'), ('length', '<u4'), ('checksum', '<u4')]
)
_MAX_LENGTH = (1 << 32) - 1
# Keys found since the last sort wait in a dict: sorting ten million takes a
# second, which an append of a few rows must not.
_MAX_RECENT = 1 << 16


def digest(*parts: Any) -> bytes:
  """A key: 16 bytes over the JSON of `parts`; mappings in any order."""
  text = json.dumps(parts, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


class Store:
  """An append-only table of bytes by key, shared by any number of processes.

  A process that is killed loses what it was appending and nothing else. An
  object of this class is for one thread at a time.
  """

  def __init__(self, folder: str | os.PathLike, about: dict[str, Any]):
    """Creates a store, or opens one. Reading needs no permission to write.

    Args:
      folder: its place.
      about: what writes it, as JSON values: all that the keys do not say.

    Raises:
      InputError: if it was written by something else, is damaged, or cannot
        be created.
    """
    self.folder = pathlib.Path(folder)
    self._payload_path = self.folder / 'payload.bin'
    self._index_path = self.folder / 'index.bin'
    self._about_path = self.folder / 'about.json'
    self._entries = np.zeros(0, _ENTRY)
    self._payload = np.zeros(0, np.uint8)
    self._end = 0  # of the last row's payload
    self._lengths = (_MAX_LENGTH, 0)  # of the shortest and the longest row
    self._recent: dict[bytes, int] = {}
    self.appended: Callable[[], None] = lambda: None  # told of new rows
    self._sort()
    if not self._about_path.exists():
      self._create(about)
    self._check_about(json.loads(json.dumps(about)))
    self.refresh()

  def __len__(self) -> int:
    return len(self._entries)

  def find(self, keys: Sequence[bytes]) -> np.ndarray:
    """Row numbers of keys, i64[keys]; -1 where there is none."""
    wanted = _as_pairs(keys)
    rows = np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(self._sorted, wanted[:, 0])
    # Two keys may share their first half; those after it are tried in turn.
    pending = np.arange(len(wanted))
    while True:
      pending = pending[at[pending] < len(self._sorted)]
      pending = pending[self._sorted[at[pending]] == wanted[pending, 0]]
      if not len(pending):
        break
      candidates = self._order[at[pending]]
      same = self._entries['key'][candidates, 1] == wanted[pending, 1]
      rows[pending[same]] = candidates[same]
      pending = pending[~same]
      at[pending] += 1
    if self._recent:
      for i in np.flatnonzero(rows < 0):
        rows[i] = self._recent.get(keys[i], -1)
    return rows

  def append(self, keys: Sequence[bytes], payloads: Sequence[bytes]) -> None:
    """Adds rows; on return they are on the disk.

    A key that is there already keeps its payload.

    Args:
      keys: of `digest`.
      payloads: one a key.

    Raises:
      InputError: if the folder cannot be written or is damaged.
    """
    if len(keys) != len(payloads):
      raise ValueError(f'{len(keys)} keys for {len(payloads)} payloads')
    with self._locked():
      self.refresh()
      first = {}
      for i, row in enumerate(self.find(keys)):
        if row < 0:
          first.setdefault(keys[i], i)
      if not first:
        return
      chosen = [payloads[i] for i in first.values()]
      entries = np.zeros(len(first), _ENTRY)
      entries['key'] = _as_pairs(list(first))
      lengths = [len(payload) for payload in chosen]
      if max(lengths) > _MAX_LENGTH:
        raise ValueError('a payload is longer than 4 GiB')
      entries['length'] = lengths
      entries['offset'] = self._end + np.cumsum([0, *lengths[:-1]])
      entries['checksum'] = [_checksum(*pair) for pair in zip(entries, chosen)]
      try:
        _extend(self._payload_path, self._end, b''.join(chosen))
        _extend(
          self._index_path, len(self) * _ENTRY.itemsize, entries.tobytes()
        )
      except OSError as error:
        raise InputError(
          f'{self.folder}: cannot be written ({error}); what it holds is kept'
        ) from error
      self.refresh()
    self.appended()

  def keys(self, first: int) -> list[bytes]:
    """The keys of the rows from `first` on."""
    return [key.tobytes() for key in self._entries['key'][first:]]

  def read(self, row: int) -> bytes:
    """The payload of a row.

    Raises:
      InputError: if it is not what was written.
    """
    entry = self._entries[row]
    start = int(entry['offset'])
    payload = self._bytes(start, start + int(entry['length']))
    if _checksum(entry, payload) != entry['checksum']:
      raise InputError(
        f'{self._payload_path}: row {row} (byte {start:,}) is not as it was '
        'written, or its entry is not; a sound copy is needed, or remove '
        f'{self.folder} to compute it again'
      )
    return payload

  def table(self, row_bytes: int) -> np.ndarray:
    """All payloads, u8[rows, row_bytes], mapped from the disk.

    Check sums are not looked at; `read` does that.

    Raises:
      InputError: if a payload has another length.
    """
    shortest, longest = self._lengths
    if len(self) and (shortest, longest) != (row_bytes, row_bytes):
      raise InputError(
        f'{self._index_path}: rows of {shortest} to {longest} bytes; '
        f'allowed: {row_bytes}'
      )
    if not len(self) * row_bytes:
      return np.zeros((len(self), row_bytes), np.uint8)
    self._bytes(0, 0)
    return self._payload[: self._end].reshape(len(self), row_bytes)

  def refresh(self) -> None:
    """Takes in what other processes have appended.

    Raises:
      InputError: if a file is shorter than it must be or an entry is damaged.
    """
    known = len(self)
    entries = _map(self._index_path, _ENTRY)
    if len(entries) < known:
      raise InputError(
        f'{self._index_path}: {len(entries)} rows, {known} before; files of '
        'a store only grow'
      )
    # A power cut may leave zeros where an entry was to be; no entry is that.
    total = len(entries)
    while total > known and not any(entries[total - 1].tobytes()):
      total -= 1
    new = entries[known:total]
    ends = np.concatenate(
      [[np.uint64(self._end)], new['offset'] + new['length']]
    )
    bad = np.flatnonzero(ends[:-1] != new['offset'])
    if len(bad):
      raise InputError(
        f'{self._index_path}: row {known + bad[0]} is damaged; a sound copy '
        f'is needed, or remove {self.folder} to compute it again'
      )
    size = len(_map(self._payload_path, np.dtype(np.uint8)))
    if ends[-1] > size:
      row = known + int(np.searchsorted(ends, size, side='right')) - 1
      raise InputError(
        f'{self._payload_path}: ends at byte {size:,}, before the end of '
        f'row {row}; a sound copy is needed, or remove {self.folder} to '
        'compute it again'
      )
    if total == known:
      return
    self._entries, self._end = entries[:total], int(ends[-1])
    self._lengths = (
      min(self._lengths[0], int(new['length'].min())),
      max(self._lengths[1], int(new['length'].max())),
    )
    if len(new) + len(self._recent) > _MAX_RECENT:
      self._sort()
    else:
      self._recent.update(
        (key.tobytes(), known + i) for i, key in enumerate(new['key'])
      )

  def _sort(self) -> None:
    """Orders all rows by the first half of their keys."""
    halves = self._entries['key'][:, 0]
    self._order = np.argsort(halves, kind='stable')
    self._sorted = halves[self._order]
    self._recent = {}

  def _bytes(self, start: int, end: int) -> bytes:
    """Bytes of the payload, which is mapped anew where it has grown."""
    if len(self._payload) < self._end:
      self._payload = _map(self._payload_path, np.dtype(np.uint8))
    return self._payload[start:end].tobytes()

  def _create(self, about: dict[str, Any]) -> None:
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with self._locked():
        if self._about_path.exists():
          return  # another process was first
        for path in (self._payload_path, self._index_path):
          if path.exists() and path.stat().st_size:
            raise InputError(
              f'{self._about_path} is missing beside {path.name}; a sound '
              f'copy is needed, or remove {self.folder}'
            )
          path.touch()
        # Renamed into place last: where it is, the other files are.
        write_atomically(
          self._about_path, json.dumps(about, indent=1, sort_keys=True)
        )
    except OSError as error:
      raise InputError(f'{self.folder}: cannot be written ({error})') from error

  def _check_about(self, about: dict[str, Any]) -> None:
    try:
      stored = json.loads(self._about_path.read_text(encoding='utf-8'))
      names = sorted(stored.keys() | about.keys())
    except (OSError, ValueError, AttributeError) as error:
      raise InputError(
        f'{self._about_path}: cannot be read ({error}); a sound copy is '
        f'needed, or remove {self.folder}'
      ) from error
    for name in names:
      if stored.get(name) != about.get(name):
        raise InputError(
          f'{self._about_path}: {name} is {stored.get(name)!r}, not '
          f'{about.get(name)!r}; allowed: the same, or another folder'
        )

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """Keeps other processes from appending."""
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(locks.lock_file(self.folder / 'lock'))
      except OSError as error:
        raise InputError(
          f'{self.folder}: cannot be written ({error})'
        ) from error
      yield


def _checksum(entry: np.void, payload: bytes) -> int:
  return zlib.crc32(payload, zlib.crc32(entry.tobytes()[:-4]))


def _as_pairs(keys: Sequence[bytes]) -> np.ndarray:
  """u64[keys, 2]."""
  if any(len(key) != _KEY_BYTES for key in keys):
    raise ValueError(f'a key has {_KEY_BYTES} bytes')
  return np.frombuffer(b''.join(keys), '<u8').reshape(-1, 2)


def _map(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  """A file's whole elements, mapped."""
  try:
    count = path.stat().st_size // dtype.itemsize
    if not count:  # which cannot be mapped
      return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, 'r', shape=(count,)))
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read ({error}); a sound copy is needed, or remove '
      f'{path.parent}'
    ) from error


def _extend(path: pathlib.Path, size: int, data: bytes) -> None:
  """Writes data at `size`, cuts off all behind it, and waits for the disk."""
  with open(path, 'r+b') as file:
    file.truncate(size)
    file.seek(size)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
