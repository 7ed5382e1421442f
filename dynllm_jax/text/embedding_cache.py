"""Embeddings that are computed once: what encoders with a store share."""

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

# From texts, none of them twice: their positions and their embeddings as they
# are finished, in any order.
Compute = Callable[[list[str]], Iterator[tuple[Sequence[int], np.ndarray]]]


def encode(
  texts: Sequence[str],
  compute: Compute,
  about: dict[str, Any],
  store: str,
  wait_seconds: float,
) -> np.ndarray:
  """Embeds texts, those that are not in the store.

  Of two processes one computes and the other waits for it.

  Args:
    texts: any strings; an empty one gives zeros.
    compute: embeds; called once if anything is missing. It is given an empty
      text only where there is no other, to learn the width.
    about: all that the embeddings follow from but the text; its `encoder`
      names the store's folder.
    store: folder of all stores, '' to keep nothing.
    wait_seconds: how long what is computed may wait to be put on the disk,
      which is what a run loses that is killed: 0 for what was paid for.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: of `compute` or of the store.
  """
  if not store:
    with tempfile.TemporaryDirectory() as scratch:
      return encode(texts, compute, about, scratch, wait_seconds)
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
  waiting, flushed = [], time.monotonic()
  progress = Progress('encoding', len(missing), 'text')

  def flush():
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
      waiting += zip(missing[list(positions)], vectors.astype(np.float16))
      if time.monotonic() - flushed >= wait_seconds:
        flush()
        flushed = time.monotonic()
      progress(len(positions))
  finally:
    flush()  # also when a limit or a failure ends the run
    progress.close()
