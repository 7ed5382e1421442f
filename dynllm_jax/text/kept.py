"""Embeddings that are computed once: what encoders with a store share."""

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dynllm_jax.progress import Progress
from dynllm_jax.text.store import Store, digest
from dynllm_jax.types import InputError

# Rows wait no longer than this before they are put on the disk.
_FLUSH_SECONDS = 1.0

# From texts, none empty and none twice: their positions and their embeddings
# as they are finished, in any order.
Compute = Callable[[list[str]], Iterator[tuple[Sequence[int], np.ndarray]]]


def encode(
    texts: Sequence[str], compute: Compute, about: dict[str, Any], store: str
) -> np.ndarray:
  """Embeds texts, those that are not in the store.

  A run that is killed loses what it computed in its last second.

  Args:
    texts: any strings; an empty one gives zeros.
    compute: embeds; called once if anything is missing, with '' only to learn
      the width where there is nothing else.
    about: all that the embeddings follow from but the text.
    store: folder of all stores, '' to keep nothing.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: of `compute` or of the store.
  """
  distinct = {text: i for i, text in enumerate(dict.fromkeys(texts)) if text}
  distinct = {text: i for i, text in enumerate(distinct)}
  names = list(distinct)
  kept = _open(about, store)
  keys = [digest(name) for name in names]
  rows = np.full(len(names), -1) if kept is None else kept.find(keys)
  missing = np.flatnonzero(rows < 0)
  fresh = {}
  if len(missing) or not names:
    fresh = _compute(compute, names, keys, missing, kept)
  out = None
  for i, row in enumerate(rows):
    vector = fresh[i] if i in fresh else np.frombuffer(
        kept.read(row), np.float16)
    if out is None:
      out = np.zeros((len(names) + 1, len(vector)), np.float16)
    if len(vector) != out.shape[1]:
      raise InputError(
          f'{folder(about, store) if store else "embeddings"}: vectors of '
          f'{out.shape[1]} and of {len(vector)} dims; remove the folder if '
          'the model behind it has changed')
    out[i] = vector
  if out is None:  # nothing but empty texts
    out = np.zeros((1, len(fresh[-1])), np.float16)
  return out[[distinct.get(text, -1) for text in texts]]


def folder(about: dict[str, Any], store: str) -> pathlib.Path:
  """Where the embeddings of an encoder are kept."""
  return pathlib.Path(
      store, f'{about["encoder"]}-{digest(about).hex()[:16]}')


def _open(about: dict[str, Any], store: str) -> Store | None:
  return Store(folder(about, store), about) if store else None


def _compute(
    compute: Compute, names: list[str], keys: list[bytes],
    missing: np.ndarray, kept: Store | None
) -> dict[int, np.ndarray]:
  """Embeddings by position, each on the disk as well; -1 is the empty text."""
  if not names:
    (_, vectors), = compute([''])
    return {-1: vectors[0].astype(np.float16)}
  fresh, waiting, flushed = {}, [], time.monotonic()
  progress = Progress('encoding', len(missing), 'text')

  def flush():
    if kept is not None and waiting:
      kept.append([keys[i] for i in waiting],
                  [fresh[i].tobytes() for i in waiting])
    waiting.clear()

  try:
    for positions, vectors in compute([names[i] for i in missing]):
      for i, vector in zip(missing[list(positions)], vectors):
        fresh[int(i)] = vector.astype(np.float16)
        waiting.append(int(i))
      if time.monotonic() - flushed > _FLUSH_SECONDS:
        flush()
        flushed = time.monotonic()
      progress(len(positions))
  finally:
    flush()  # also when a limit or a failure ends the run
    progress.close()
  return fresh
