"""Exchanges the rows of a store with a bucket, where other machines find them.

Objects in a bucket cannot grow. Rows are put there as segments, `<name>.npz`
with the keys, the lengths of the payloads and the payloads; the name is a hash
of the content. The bucket's store is the union of its segments, so that
machines that write at the same time lose nothing.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import io
import json
import time
from typing import NamedTuple

import numpy as np

from dynllm_jax.storage import bucket
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError

# New rows are sent this often: what a lost machine can lose of its work.
SYNC_SECONDS = 10.0
_NOTE = 'segments.json'  # in the store's folder


class _Shared(NamedTuple):
  """What a store has in common with its bucket.

  Attributes:
    rows: the first rows of the store, all of which the bucket has.
    segments: names of the segments whose rows the store has.
  """

  rows: int
  segments: tuple[str, ...]


@contextlib.contextmanager
def synced(store: Store) -> Iterator[None]:
  """Fetches the bucket's rows, and sends it rows appended within the block.

  Args:
    store: nobody else appends to it within the block. Nothing is done if its
      folder is not the copy of a bucket's.

  Raises:
    InputError: if the bucket cannot be used or a segment is damaged.
  """
  source = bucket.origin(store.folder)
  if not source:
    yield
    return
  _push(store, source)
  _pull(store, source)
  last = time.monotonic()

  def appended() -> None:
    nonlocal last
    if time.monotonic() - last >= SYNC_SECONDS:
      _push(store, source)
      last = time.monotonic()

  store.appended = appended
  try:
    yield
  finally:
    store.appended = lambda: None
    _push(store, source)


def _shared(store: Store) -> _Shared:
  path = store.folder / _NOTE
  if not path.exists():
    return _Shared(0, ())
  note = json.loads(path.read_text())
  return _Shared(note['rows'], tuple(note['segments']))


def _remember(store: Store, name: str) -> None:
  """Notes that the bucket has all rows of the store, the last in a segment."""
  segments = [*_shared(store).segments, name]
  note = {'rows': len(store), 'segments': segments}
  write_atomically(store.folder / _NOTE, json.dumps(note))


def _push(store: Store, source: bucket.Path) -> None:
  """Puts the rows that the bucket lacks there, as one segment."""
  first = _shared(store).rows
  if first == len(store):
    return
  payloads = [store.read(row) for row in range(first, len(store))]
  content = io.BytesIO()
  np.savez(
    content,
    keys=np.frombuffer(b''.join(store.keys(first)), np.uint8),
    lengths=np.array([len(payload) for payload in payloads], np.int64),
    payloads=np.frombuffer(b''.join(payloads), np.uint8),
  )
  name = _segment_name(content.getvalue())
  with bucket.report_errors(source):
    (source / name).write_bytes(content.getvalue())
  _remember(store, name)


def _pull(store: Store, source: bucket.Path) -> None:
  """Appends the rows of segments that the store does not have yet."""
  known = _shared(store).segments
  with bucket.report_errors(source):
    found = (
      sorted(path.name for path in source.glob('*.npz'))
      if source.exists()
      else []
    )
  for name in found:
    if name in known:
      continue
    with bucket.report_errors(source):
      content = (source / name).read_bytes()
    if _segment_name(content) != name:
      raise InputError(
        f'{source / name}: is not as it was written; a sound copy is '
        'needed, or remove it to compute its rows again'
      )

    with np.load(io.BytesIO(content)) as segment:
      keys = segment['keys'].reshape(len(segment['lengths']), -1)
      ends = np.cumsum(segment['lengths']).tolist()
      payloads = segment['payloads'].tobytes()
    store.append(
      [key.tobytes() for key in keys],
      [payloads[a:b] for a, b in zip([0, *ends], ends)],
    )
    _remember(store, name)


def _segment_name(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest() + '.npz'
