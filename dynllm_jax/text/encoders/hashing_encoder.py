"""Text encoder without a model: signed hashing of character n-grams and words.

It needs no download, gives the same bits on every machine, and knows no
language: texts are close to each other if they share words or parts of words.
It is the default LLM_E of SPEC 3.6 and the baseline for language models.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import functools
import sys
from typing import Any
import unicodedata

import ml_collections
import numpy as np

from dynllm_jax import checks

VERSION = 1

CHUNK_TEXTS = 512  # texts hashed at once: their counts stay in cache
CHUNK_CHARACTERS = 1 << 17
_MAX_DIM = 1 << 15  # a signed bucket is drawn from 16 bits
_SEPARATOR = '\0'  # composes with nothing, so texts normalize independently
# A word has many n-grams, each of which says little, so the whole word counts
# as much as this many of them.
_WORD_WEIGHT = 2

# Multiplying by an odd constant modulo 2**32 can be undone: no bits are lost.
_BASE = np.uint32(0x9E3779B1)
_FINAL = np.uint32(0x85EBCA77)
_SALTS = {
  'pair': np.uint32(0xC2B2AE3D),
  3: np.uint32(0x27D4EB2F),
  4: np.uint32(0x165667B1),
  5: np.uint32(0xD3A2646D),
  'word': np.uint32(0xFD7046C5),
}


def check(encoder_config: ml_collections.ConfigDict) -> None:
  """Checks the field that this encoder reads.

  Raises:
    InputError: if `dim` is out of range.
  """
  within = checks.Rule(
    'dim', f'1 to {_MAX_DIM} for hashing', lambda dim: 1 <= dim <= _MAX_DIM
  )
  checks.check('config.facets.encoder', encoder_config, [within])


def encode(
  encoder_config: ml_collections.ConfigDict,
  texts: Sequence[str],
  store: str = '',
) -> np.ndarray:
  """Hashes texts into `encoder_config.dim` signed buckets.

  A text is NFKC-normalized and case-folded; runs of letters, digits and marks
  are words, everything else is a space. Features are the 3-, 4- and 5-grams of
  each word with a space on both sides, and the word itself. A Chinese or
  Japanese character is also a word of its own, and two of them in a row are a
  feature, since these scripts put no spaces between words. A bucket's value is
  the square root of its count, with its sign; a text's vector has length 1.

  Args:
    encoder_config: `config.facets.encoder`; `dim` is the number of buckets.
    texts: any strings.
    store: unused; hashing is cheap.

  Returns:
    f16[texts, dim]; a text without a word gives zeros.

  Raises:
    InputError: if `dim` is out of range.
  """
  del store
  check(encoder_config)
  dim = encoder_config.dim
  out = np.empty((len(texts), dim), np.float16)
  for first, last in _chunks(texts):
    out[first:last] = _encode_chunk(texts[first:last], dim)
  return out


def identity(
  encoder_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """All that embeddings depend on except the text."""
  del store
  return {'encoder': 'hashing', 'version': VERSION, 'dim': encoder_config.dim}


def describe(encoder_config: ml_collections.ConfigDict) -> str:
  """The encoder in words, for reports."""
  return (
    f'hashing character n-grams, {encoder_config.dim} dims (no language model)'
  )


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
  """Bounds of chunks with few texts and few characters."""
  first, characters = 0, 0
  for i, text in enumerate(texts):
    characters += len(text)
    if i - first >= CHUNK_TEXTS or characters > CHUNK_CHARACTERS:
      if i > first:
        yield first, i
      first, characters = i, len(text)
  if first < len(texts):
    yield first, len(texts)


def _encode_chunk(texts: Sequence[str], dim: int) -> np.ndarray:
  """f32[texts, dim], each row of length 1 or 0."""
  keys = np.concatenate(feature_keys(texts, dim))
  counts = np.bincount(keys, minlength=len(texts) * 2 * dim)
  counts = counts.reshape(len(texts), 2, dim)
  signed = (counts[:, 0] - counts[:, 1]).astype(np.float32)
  vector = np.copysign(np.sqrt(np.abs(signed)), signed)
  # The squares are whole numbers, so that their sum is exact and the same on
  # every machine, whatever order it adds them in.
  length = np.sqrt(np.abs(signed).sum(axis=1, keepdims=True))
  return vector / np.maximum(length, 1)


def feature_keys(texts: Sequence[str], dim: int) -> list[np.ndarray]:
  """The signed bucket of every feature: i64 arrays, one for each kind.

  Bucket b of text t is number `t * 2 * dim + b`, `dim` more with a minus.
  """
  codes, owner = _code_points(texts)
  word, cjk = _tables()
  is_word = word[codes]

  # One space between words and at both ends, so that every n-gram around a
  # letter has its neighbors inside the array.
  keep = is_word.copy()
  keep[1:] |= is_word[:-1]
  codes, owner, is_word = codes[keep], owner[keep], is_word[keep]
  codes = np.concatenate([[32], codes, [32, 32, 32]])
  codes = np.where(np.concatenate([[False], is_word, [False] * 3]), codes, 32)
  is_word = np.concatenate([is_word, [False] * 2])

  value = (codes.astype(np.uint32) + np.uint32(1)) * _BASE
  base = owner.astype(np.int64) * (2 * dim)
  size = len(base)

  # An n-gram starts one before a letter and has no space inside, so it stays
  # in one word, hence in one text.
  keys = []
  inside = is_word[:size].copy()
  gram = value[:size] + value[1 : size + 1] * _power(1)
  for n in (3, 4, 5):
    gram = gram + value[n - 1 : size + n - 1] * _power(n - 1)
    if n > 3:
      inside = inside & is_word[n - 3 : size + n - 3]
    keys.append(_keys(gram[inside], base[inside], _SALTS[n], dim))

  hashed, at = _words(value[1 : size + 1], is_word[:size])
  is_cjk = cjk[codes[1 : size + 2]]
  if is_cjk.any():
    single, pair = is_cjk[:-1], is_cjk[:-1] & is_cjk[1:]
    twins = value[1 : size + 1] + value[2 : size + 2] * _power(1)
    keys.append(_keys(twins[pair], base[pair], _SALTS['pair'], dim))
    hashed = np.concatenate([hashed, value[1 : size + 1][single]])
    at = np.concatenate([at, np.flatnonzero(single)])
  words = _keys(hashed, base[at], _SALTS['word'], dim)
  return keys + [words] * _WORD_WEIGHT


def _code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Code points of all folded texts, and which text each belongs to.

  A separator stands between two texts.
  """
  joined = _SEPARATOR.join(texts)
  if joined.count(_SEPARATOR) >= len(texts):
    joined = _SEPARATOR.join(t.replace(_SEPARATOR, ' ') for t in texts)
  # Folding can undo normalization, which is therefore repeated.
  joined = unicodedata.normalize('NFKC', joined).casefold()
  joined = unicodedata.normalize('NFKC', joined)
  # A lone surrogate is not a character, but must not stop the run.
  codes = np.frombuffer(joined.encode('utf-32-le', 'surrogatepass'), '<u4')
  return codes, np.cumsum(codes == ord(_SEPARATOR), dtype=np.int32)


def _words(
  value: np.ndarray, is_word: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Hash of every word, u32[words], and where it starts."""
  before = np.concatenate([[False], is_word[:-1]])
  starts = np.flatnonzero(is_word & ~before)
  if not len(starts):
    return np.zeros(0, np.uint32), starts
  run = np.diff(starts, append=len(value))
  position = np.arange(starts[0], len(value)) - np.repeat(starts, run)
  powers = np.full(run.max(), _power(1), np.uint32)
  powers[0] = 1
  powers = np.cumprod(powers, dtype=np.uint32)
  terms = value[starts[0] :] * powers[position]
  terms[~is_word[starts[0] :]] = 0
  return np.add.reduceat(terms, starts - starts[0], dtype=np.uint32), starts


def _power(exponent: int) -> np.uint32:
  return np.uint32(pow(0x01000193, exponent, 1 << 32))


def _keys(
  hashed: np.ndarray, base: np.ndarray, salt: np.uint32, dim: int
) -> np.ndarray:
  """Mixes hashes into signed buckets, 0 to 2 dim, and adds `base`."""
  mixed = hashed * salt
  mixed ^= mixed >> np.uint32(15)
  mixed *= _FINAL
  mixed >>= np.uint32(16)
  mixed *= np.uint32(2 * dim)
  mixed >>= np.uint32(16)
  return base + mixed


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
  """bool[code points]: part of a word; a word of a script without spaces."""
  size = sys.maxunicode + 1
  word = np.fromiter(
    (unicodedata.category(chr(code))[0] in 'LNM' for code in range(size)),
    bool,
    size,
  )
  cjk = np.zeros(size, bool)
  for first, last in (
    (0x3040, 0x30FF),  # Japanese syllables
    (0x3400, 0x9FFF),  # Han, here and below
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFD),
  ):
    cjk[first : last + 1] = True
  return word, cjk & word
