"""The embedded text encoder."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_collections
import numpy as np
import pytest

from dynllm_jax.text import encoding
from dynllm_jax.text.encoders import hashing_encoder
from dynllm_jax.types import InputError

GOLDEN = [
  [0.0000, 0.0000, 0.5347, 0.0000, -0.5347, -0.3779, 0.0000, -0.5347],
  [-0.2886, -0.4082, 0.4082, 0.0000, -0.2886, -0.4082, 0.2886, -0.5000],
  [0.0000, 0.0000, -0.3535, 0.4331, 0.3535, 0.5000, 0.5000, 0.2500],
  [0.0000, 0.5771, -0.5000, 0.2886, -0.4082, 0.2886, 0.0000, 0.2886],
]


def config(dim=384, name='hashing'):
  return ml_collections.ConfigDict({'name': name, 'model': '', 'dim': dim})


def encode(texts, dim=384):
  return encoding.encode(config(dim), texts)


def cosine(a, b):
  vectors = encode([a, b]).astype(np.float64)
  return vectors[0] @ vectors[1]


def test_golden_values():
  """If this fails on purpose, raise `VERSION`: caches depend on it."""
  got = encode(['rose', 'Rose  candle, 2 oz', '玫瑰蜡烛', 'Ärger'], 8)
  np.testing.assert_array_equal(got, np.array(GOLDEN, np.float16))


def test_version_of_golden_values():
  assert hashing_encoder.VERSION == 1


def test_features_of_a_short_text_by_hand():
  # ' ab ': two 3-grams, one 4-gram, and the word twice.
  keys = np.concatenate(hashing_encoder.feature_keys(['ab'], 384))
  assert len(keys) == 2 + 1 + 2
  # ' abc ', ' d ': 3 + 2 + 1 n-grams and a word, then 1 and a word.
  keys = np.concatenate(hashing_encoder.feature_keys(['abc, d'], 384))
  assert len(keys) == (3 + 2 + 1 + 2) + (1 + 2)
  # Two Han characters: as a word of two letters, a pair, two single words.
  keys = np.concatenate(hashing_encoder.feature_keys(['蜡烛'], 384))
  assert len(keys) == (2 + 1 + 2) + 1 + 2 * 2


@given(st.lists(st.text(max_size=20), max_size=8), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_row_depends_on_its_text_alone(texts, dim):
  together = encode(texts, dim)
  assert together.shape == (len(texts), dim)
  assert together.dtype == np.float16
  for text, row in zip(texts, together):
    np.testing.assert_array_equal(row, encode([text], dim)[0])


@pytest.mark.parametrize('texts_each, characters', [(1, 1), (3, 20), (7, 1000)])
def test_chunking_has_no_effect(monkeypatch, texts_each, characters):
  texts = [f'title {i} ' * (i % 5) for i in range(40)]
  expected = encode(texts)
  monkeypatch.setattr(hashing_encoder, 'CHUNK_TEXTS', texts_each)
  monkeypatch.setattr(hashing_encoder, 'CHUNK_CHARACTERS', characters)
  np.testing.assert_array_equal(encode(texts), expected)


@given(st.lists(st.text('ab ,1é玫瑰ß', max_size=30), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_length_is_one_or_zero(texts):
  lengths = np.linalg.norm(encode(texts).astype(np.float64), axis=1)
  assert np.all((np.abs(lengths - 1) < 2e-3) | (lengths == 0))


def test_texts_without_a_word_give_zeros():
  assert not encode(['', '  ', ' - !', '\0', '\0\0']).any()
  assert encode([]).shape == (0, 384)


@pytest.mark.parametrize(
  'a, b',
  [
    ('Rose Candle', 'rose   candle!'),
    ('ＲＯＳＥ', 'rose'),  # full width
    ('Straße', 'STRASSE'),
    ('caf\u00e9', 'cafe\u0301'),  # composed and not
    ('one\0two', 'one two'),
  ],
)
def test_spellings_that_are_one_text(a, b):
  np.testing.assert_array_equal(*encode([a, b]))


def test_order_of_letters_and_words_of_a_compound_matter():
  assert cosine('rose', 'eros') < 0.9
  assert cosine('candle', 'candles') > 0.5
  assert cosine('white lamp holder', 'red lamp holder') > cosine(
    'white lamp holder', 'white paper napkin'
  )


def test_chinese_without_spaces():
  assert cosine('连衣裙夏季女装', '夏季女装连衣裙') > 0.5
  assert abs(cosine('连衣裙', '手机壳')) < 0.3


def test_a_lone_surrogate_does_not_stop_the_run():
  assert encode(['a\ud800b']).any()


def test_description():
  assert encoding.describe(config(16)) == (
    'hashing character n-grams, 16 dims (no language model)'
  )


def test_unknown_encoder_names_field_value_and_allowed():
  with pytest.raises(
    InputError,
    match=(
      "config.facets.encoder.name: unknown encoder 'bert9'; allowed: flax, "
      'hashing, openai, or the full name of a module'
    ),
  ):
    encoding.encode(config(name='bert9'), ['a'])
  for shared in ('encoders', 'kept'):
    with pytest.raises(InputError, match='unknown encoder'):
      encoding.describe(config(name=shared))


@pytest.mark.parametrize('dim', [0, -1, 1 << 16])
def test_bad_dim(dim):
  with pytest.raises(
    InputError, match=f'config.facets.encoder.dim: {dim} .*allowed'
  ):
    encode(['a'], dim)
