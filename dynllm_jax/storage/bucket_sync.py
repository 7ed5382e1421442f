"""Rows of a store in a bucket, where other machines find them.

A bucket's objects do not grow. Rows are put there as segments, `<name>.npz`
with the keys, the lengths of the payloads and the payloads; the name is a hash
of the content. A store is the union of its segments, so that machines that
write at the same time lose nothing.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import io
import json
import time

import numpy as np

from dynllm_jax.storage import bucket
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError

# What a lost machine can lose of what it computed.
_SECONDS = 10.0
_NOTE = 'segments.json'  # rows and segments that both sides have


@contextlib.contextmanager
def synced(store: Store) -> Iterator[None]:
  """Takes in the rows of the bucket, and puts new ones there.

  Args:
    store: nobody else appends to it within the block; nothing is done where
      its folder is no copy of a bucket's.

  Raises:
    InputError: if the bucket cannot be used or a segment is damaged.
  """
  source = bucket.origin(store.folder)
  if not source:
    yield
    return
  known = _known(store)
  _push(store, source, known)
  _pull(store, source, known)
  last = time.monotonic()

  def appended():
    nonlocal last
    if time.monotonic() - last >= _SECONDS:
      _push(store, source, known)
      last = time.monotonic()

  store.appended = appended
  try:
    yield
  finally:
    store.appended = lambda: None
    _push(store, source, known)


def _known(store):
  path = store.folder / _NOTE
  if path.exists():
    return json.loads(path.read_text())
  return {'rows': 0, 'segments': []}


def _remember(store, known, name):
  known['rows'] = len(store)
  known['segments'].append(name)
  write_atomically(store.folder / _NOTE, json.dumps(known))


def _push(store, source, known):
  """Puts the rows that the bucket lacks there."""
  first = known['rows']
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
  name = _name(content.getvalue())
  with bucket.report_errors(source):
    (source / name).write_bytes(content.getvalue())
  _remember(store, known, name)


def _pull(store, source, known):
  """Appends the rows of segments that are new here."""
  with bucket.report_errors(source):
    found = (
      sorted(path.name for path in source.glob('*.npz'))
      if source.exists()
      else []
    )
  for name in found:
    if name in known['segments']:
      continue
    with bucket.report_errors(source):
      content = (source / name).read_bytes()
    if _name(content) != name:
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
    _remember(store, known, name)


def _name(content):
  return hashlib.blake2b(content, digest_size=16).hexdigest() + '.npz'
