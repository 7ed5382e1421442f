"""Embeddings that are computed once and kept in a store."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from dynllm_jax.progress import Progress
from dynllm_jax.progress import say
from dynllm_jax.storage import fill_lock
from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError

Positions = Sequence[int] | np.ndarray
# Embeds distinct texts. Yields positions of some of them and their embeddings,
# f32[positions, dim], as they are finished, in any order.
Compute = Callable[[list[str]], Iterator[tuple[Positions, np.ndarray]]]


def encode(
  texts: Sequence[str],
  compute: Compute,
  about: dict[str, Any],
  store: str,
  wait_seconds: float,
) -> np.ndarray:
  """Embeds texts, computing only those that are not in the store.

  Of two processes one computes and the other waits for it.

  Args:
    texts: any strings; an empty one gives zeros.
    compute: embeds texts; called once if any are missing. It only gets an
      empty text if there is no other, to learn the width.
    about: all that embeddings depend on except the text; its `encoder` names
      the store's folder.
    store: folder of all stores, '' to keep nothing.
    wait_seconds: how long embeddings may wait before they are put on the disk.
      A killed run loses that much; 0 if embeddings cost money.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: from `compute` or the store.
  """
  if not store:
    with tempfile.TemporaryDirectory() as temporary:
      return encode(texts, compute, about, temporary, wait_seconds)

  place = pathlib.Path(store, f'{about["encoder"]}-{digest(about).hex()[:16]}')
  kept = Store(place, about)
  names = list(dict.fromkeys(filter(None, texts))) or ['']
  keys = [digest(name) for name in names]

  if (kept.find(keys) < 0).any():
    with fill_lock.hold(kept, say):
      missing = np.flatnonzero(kept.find(keys) < 0)
      if len(missing):
        _compute(compute, names, keys, missing, kept, wait_seconds)

  row_of = dict(zip(names, kept.find(keys).tolist()))
  width = len(kept.read(row_of[names[0]])) // 2
  out = np.zeros((len(texts), width), np.float16)
  for i, text in enumerate(texts):
    if text:
      vector = np.frombuffer(kept.read(row_of[text]), np.float16)
      if len(vector) != width:
        raise InputError(
          f'{place}: vectors of {width} and of {len(vector)} dims; remove '
          'the folder if the model behind it has changed'
        )
      out[i] = vector
  return out


def _compute(
  compute: Compute,
  names: list[str],
  keys: list[bytes],
  missing: np.ndarray,
  kept: Store,
  wait_seconds: float,
) -> None:
  """Puts the missing embeddings into the store."""
  waiting: list[tuple[int, np.ndarray]] = []
  flushed = time.monotonic()
  progress = Progress('encoding', len(missing), 'text')

  def flush() -> None:
    kept.append(
      [keys[i] for i, _ in waiting], [vector.tobytes() for _, vector in waiting]
    )
    waiting.clear()

  try:
    for positions, vectors in compute([names[i] for i in missing]):
      if not np.abs(vectors).max() <= np.finfo(np.float16).max:
        raise InputError(
          'config.facets.encoder.model: an embedding is not finite in half '
          "precision; allowed: a sound model, or normalize='yes'"
        )
      waiting += zip(
        missing[list(positions)].tolist(), vectors.astype(np.float16)
      )
      if time.monotonic() - flushed >= wait_seconds:
        flush()
        flushed = time.monotonic()
      progress(len(positions))
  finally:
    # Also after an error: what was computed, or paid for, is kept.
    flush()
    progress.close()
