"""Batches of texts of similar length, in few shapes."""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Texts are padded to these lengths. Each is compiled once; they are closer
# together where most texts are.
LENGTHS = (
  *range(8, 56, 8),
  *(64, 80, 96, 128, 160, 192, 256, 320, 384),
  *(512, 768, 1024, 1536, 2048, 3072, 4096),
)


class TokenBatch(NamedTuple):
  """A batch of texts.

  Attributes:
    positions: i64[texts], which texts.
    ids: i32[rows, length], token ids; rows behind the texts are padding.
    lengths: i32[rows], tokens of each row; 1 for padding.
  """

  positions: np.ndarray
  ids: np.ndarray
  lengths: np.ndarray


def token_batches(
  tokens: Sequence[Sequence[int]],
  budget: int,
  multiple: int,
  longest: int,
  pad: int = 0,
) -> Iterator[TokenBatch]:
  """Sorts texts by length, longest first, and cuts them into batches.

  The shape of a text's batch depends on its own length only, not on the other
  texts: a resumed run computes the same embeddings as an unbroken one.

  Args:
    tokens: token ids of each text.
    budget: tokens of a batch, padding included.
    multiple: the rows of a batch are a multiple of it.
    longest: the most tokens that a text may have.
    pad: the token id of padding.

  Yields:
    The batches.
  """
  sizes = np.array([len(row) for row in tokens], np.int64)
  order = np.argsort(-sizes, kind='stable')
  buckets = np.array([b for b in LENGTHS if b < longest] + [longest])
  padded = buckets[np.searchsorted(buckets, sizes[order])]

  start = 0
  while start < len(order):
    length = int(padded[start])
    rows = max(budget // length // multiple, 1) * multiple
    same = int(np.count_nonzero(padded[start : start + rows] == length))

    positions = order[start : start + same]
    ids = np.full((rows, length), pad, np.int32)
    lengths = np.ones(rows, np.int32)
    for row, at in enumerate(positions.tolist()):
      ids[row, : sizes[at]] = tokens[at]
      lengths[row] = sizes[at]
    yield TokenBatch(positions, ids, lengths)
    start += same
