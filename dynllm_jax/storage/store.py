"""A store of results that are expensive to compute, found by their inputs.

    <folder>/about.json    what wrote the store
    <folder>/payload.bin   payloads, one after the other
    <folder>/index.bin     an entry for each payload: 16 bytes of key, u64
                           offset, u32 length, and a u32 checksum over all
                           of these and the payload
    <folder>/lock          locked by the process that appends
    <folder>/turn          locked by the process that computes missing rows
                           (fill_lock.py)

Files only grow. Payloads are on the disk before their entries are written, so
that every entry has its payload. What a killed process left behind the last
whole entry is cut off by the next append.

Why not SQLite: it is as safe (of 20 processes killed while they appended, none
lost an acknowledged row, in either), but slower where a run waits for the
store. A million rows of 768 bytes, this store against SQLite (one table; WAL,
synchronous=FULL, a 64 MB cache, the file mapped):

    append and sync 4,096 rows     59 ms      294 ms
    append and sync 64 rows        20 ms       12 ms
    append and sync 1 row          16 ms        7 ms
    find all keys                 2.8 s       6.9 s  (23.5 s key by key)
    read a row found               12 us       27 us
    open                          490 ms        1 ms
    on the disk                   803 MB      870 MB

Medians of 3 to 245 calls in turn, on 2 busy cores (AMD EPYC, ext4, Python
3.11.7, NumPy 2.4.6, SQLite 3.40.1); 200,000 rows give the same order. An append
of one row follows a call to a language model of a second or more, so that the
two syncs of this store, where SQLite needs one, do not show. SQLite's WAL also
must write to read: a finished store on a read-only disk would not open.
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
# New keys wait in a dict before all keys are sorted again: sorting ten million
# takes a second, and an append of a few rows must not.
MAX_UNSORTED = 1 << 16


def digest(*parts: Any) -> bytes:
  """A key of 16 bytes: a hash of the JSON of `parts`.

  Mappings with the same items have the same key, whatever their order.
  """
  text = json.dumps(parts, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


class Store:
  """An append-only table of bytes by key, shared by any number of processes.

  A process that is killed loses the rows it was appending and nothing else.
  Threads must not share an object of this class.

  Attributes:
    folder: its place.
    appended: called after each append that added rows.
  """

  def __init__(self, folder: str | os.PathLike, about: dict[str, Any]) -> None:
    """Creates a store, or opens one. Reading needs no permission to write.

    Args:
      folder: its place.
      about: what writes it, as JSON values: everything that payloads depend on
        and keys do not contain.

    Raises:
      InputError: if it was written by something else, is damaged, or cannot
        be created.
    """
    self.folder = pathlib.Path(folder)
    self.appended: Callable[[], None] = lambda: None
    self._payload_path = self.folder / 'payload.bin'
    self._index_path = self.folder / 'index.bin'
    self._about_path = self.folder / 'about.json'

    self._entries = np.zeros(0, _ENTRY)
    self._payload = np.zeros(0, np.uint8)
    self._end = 0  # of the last row's payload
    self._unsorted: dict[bytes, int] = {}
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

    # Only the first halves of keys are sorted. Where rows share one, they are
    # tried one after the other.
    at = np.searchsorted(self._sorted, wanted[:, 0])
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

    if self._unsorted:
      for i in np.flatnonzero(rows < 0).tolist():
        rows[i] = self._unsorted.get(keys[i], -1)
    return rows

  def append(self, keys: Sequence[bytes], payloads: Sequence[bytes]) -> None:
    """Adds rows, which are on the disk on return.

    A key that is there already keeps its payload.

    Args:
      keys: made by `digest`.
      payloads: one for each key.

    Raises:
      InputError: if the folder cannot be written or is damaged.
    """
    if len(keys) != len(payloads):
      raise ValueError(f'{len(keys)} keys for {len(payloads)} payloads')
    with self._locked():
      self.refresh()
      first: dict[bytes, int] = {}
      for i, row in enumerate(self.find(keys).tolist()):
        if row < 0:
          first.setdefault(keys[i], i)
      if not first:
        return

      chosen = [payloads[i] for i in first.values()]
      entries = self._new_entries(list(first), chosen)
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

  def _new_entries(
    self, keys: Sequence[bytes], payloads: Sequence[bytes]
  ) -> np.ndarray:
    """Entries of rows that follow the last one."""
    lengths = [len(payload) for payload in payloads]
    if max(lengths) > _MAX_LENGTH:
      raise ValueError('a payload is longer than 4 GiB')
    entries = np.zeros(len(keys), _ENTRY)
    entries['key'] = _as_pairs(keys)
    entries['length'] = lengths
    entries['offset'] = self._end + np.cumsum([0, *lengths[:-1]])
    entries['checksum'] = [_checksum(*pair) for pair in zip(entries, payloads)]
    return entries

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
    if len(self._payload) < self._end:  # it has grown since it was mapped
      self._payload = _map(self._payload_path, np.dtype(np.uint8))
    payload = self._payload[start : start + int(entry['length'])].tobytes()
    if _checksum(entry, payload) != entry['checksum']:
      raise InputError(
        f'{self._payload_path}: row {row} (byte {start:,}) is not as it was '
        'written, or its entry is not; a sound copy is needed, or remove '
        f'{self.folder} to compute it again'
      )
    return payload

  def refresh(self) -> None:
    """Looks for rows that other processes have appended.

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
    # A power cut may leave zeros where an entry was to be written. No entry
    # is all zeros.
    total = len(entries)
    while total > known and not any(entries[total - 1].tobytes()):
      total -= 1
    if total == known:
      self._check_payload(np.array([self._end], np.uint64))
      return

    # Payloads follow each other without a gap.
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
    self._check_payload(ends)

    self._entries, self._end = entries[:total], int(ends[-1])
    if len(new) + len(self._unsorted) > MAX_UNSORTED:
      self._sort()
    else:
      self._unsorted.update(
        (key.tobytes(), known + i) for i, key in enumerate(new['key'])
      )

  def _check_payload(self, ends: np.ndarray) -> None:
    """Stops where the payload ends before the new rows do.

    Args:
      ends: u64[1 + new rows], where the payload of the last known row and of
        each new one ends.
    """
    size = len(_map(self._payload_path, np.dtype(np.uint8)))
    if ends[-1] > size:
      row = len(self) + int(np.searchsorted(ends, size, side='right')) - 1
      raise InputError(
        f'{self._payload_path}: ends at byte {size:,}, before the end of '
        f'row {row}; a sound copy is needed, or remove {self.folder} to '
        'compute it again'
      )

  def _sort(self) -> None:
    """Orders all rows by the first half of their keys."""
    halves = self._entries['key'][:, 0]
    self._order = np.argsort(halves, kind='stable')
    self._sorted = halves[self._order]
    self._unsorted = {}

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
        # Written last: where it is, the other files are.
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
  """Keys as two halves each, u64[keys, 2]."""
  if any(len(key) != _KEY_BYTES for key in keys):
    raise ValueError(f'a key has {_KEY_BYTES} bytes')
  return np.frombuffer(b''.join(keys), '<u8').reshape(-1, 2)


def _map(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  """The whole elements of a file, mapped into memory."""
  try:
    count = path.stat().st_size // dtype.itemsize
    if not count:  # an empty file cannot be mapped
      return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, 'r', shape=(count,)))
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read ({error}); a sound copy is needed, or remove '
      f'{path.parent}'
    ) from error


def _extend(path: pathlib.Path, size: int, data: bytes) -> None:
  """Replaces what follows byte `size` by `data`, and waits for the disk."""
  with open(path, 'r+b') as file:
    file.truncate(size)
    file.seek(size)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
