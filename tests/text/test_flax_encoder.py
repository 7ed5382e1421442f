"""The encoder `flax`: against plain numpy, and what it keeps and shares."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.text import encoding
from dynllm_jax.text import flax_models
from dynllm_jax.text import pooling
from dynllm_jax.text import token_batches
from dynllm_jax.text.encoders import flax_encoder
from dynllm_jax.types import InputError
from tests.testing import commands
from tests.testing import tiny_models

TEXTS = [
  'abc',
  '',
  'a b',
  'zebra quilt',
  'abc',
  'q' * 60,
  'a',
  '?',
  *(f'{a} {b}' for a in 'hjk' for b in ('lm', 'nop qrst')),
]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tiny BERT; its directory and its weights."""
  folder = tmp_path_factory.mktemp('model') / 'tiny'
  return folder, tiny_models.save(folder)


def _config(folder, **fields):
  config = config_lib.default().facets.encoder
  config.name, config.model, config.batch_tokens = 'flax', str(folder), 64
  for name, value in fields.items():
    config[name] = value
  return config


# -------------------------------------------------- BERT, one text at a time


def _bert(params, ids):
  """Hidden states of one text, f64[tokens, 16], by the published equations."""
  get = lambda *path: params[path].astype(np.float64)
  tables = [
    get('embeddings', f'{name}_embeddings', 'embedding')
    for name in ('word', 'position', 'token_type')
  ]
  x = tables[0][ids] + tables[1][: len(ids)] + tables[2][0]
  x = _layer_norm(x, get, 'embeddings', 'LayerNorm')
  for layer in '01':
    at = ('encoder', 'layer', layer)
    q, k, v = (
      _dense(x, get, *at, 'attention', 'self', name)
      for name in ('query', 'key', 'value')
    )
    heads = []
    for h in range(2):
      head = slice(8 * h, 8 * h + 8)
      weights = np.exp(q[:, head] @ k[:, head].T / np.sqrt(8))
      heads.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    out = _dense(
      np.concatenate(heads, 1), get, *at, 'attention', 'output', 'dense'
    )
    x = _layer_norm(x + out, get, *at, 'attention', 'output', 'LayerNorm')
    y = _dense(x, get, *at, 'intermediate', 'dense')
    gelu = y * (1 + np.vectorize(math.erf)(y / np.sqrt(2))) / 2
    x = _layer_norm(
      x + _dense(gelu, get, *at, 'output', 'dense'),
      get,
      *at,
      'output',
      'LayerNorm',
    )
  return x


def _dense(x, get, *at):
  return x @ get(*at, 'kernel') + get(*at, 'bias')


def _layer_norm(x, get, *at):
  x = x - x.mean(1, keepdims=True)
  x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-12)
  return x * get(*at, 'scale') + get(*at, 'bias')


def _ids(text, limit=40):
  """Ids of a text in the tiny vocabulary: every letter is a token."""
  letters = tiny_models.LETTERS
  ids = []
  for word in text.replace('?', ' ? ').split():
    # A word that is not in the vocabulary as pieces is one unknown token.
    ids += (
      [1]
      if word == '?'
      else [5 + letters.index(c) + 26 * (i > 0) for i, c in enumerate(word)]
    )
  return [2, *ids[: limit - 2], 3]


def _expected(params, text, pooling='mean', normalize=True, limit=40):
  hidden = _bert(params, _ids(text, limit))
  vector = {'mean': hidden.mean(0), 'cls': hidden[0], 'last': hidden[-1]}[
    pooling
  ]
  return vector / np.linalg.norm(vector) if normalize else vector


@pytest.mark.parametrize(
  'pooling, normalize', [('mean', 'yes'), ('cls', 'no'), ('last', 'yes')]
)
def test_it_agrees_with_plain_numpy(model, pooling, normalize):
  folder, params = model
  config = _config(folder, pooling=pooling, normalize=normalize)
  out = np.full((len(TEXTS), 16), np.nan)
  for positions, vectors in flax_encoder.vectors(config, TEXTS):
    assert vectors.dtype == np.float32
    out[positions] = vectors
  for text, vector in zip(TEXTS, out):
    np.testing.assert_allclose(
      vector,
      _expected(params, text, pooling, normalize == 'yes'),
      atol=1e-5,
      err_msg=text,
    )


def test_rows_come_back_in_order_and_in_half_precision(model, tmp_path):
  folder, params = model
  for store in ('', str(tmp_path)):
    out = encoding.encode(_config(folder), TEXTS, store)
    assert out.dtype == np.float16 and out.shape == (len(TEXTS), 16)
    for text, vector in zip(TEXTS, out):
      expected = _expected(params, text) if text else np.zeros(16)
      np.testing.assert_allclose(vector, expected, atol=1e-3, err_msg=text)
  assert not encoding.encode(_config(folder), ['', '']).any()


def test_batches_hold_every_text_once():
  draw = np.random.default_rng(0)
  tokens = [
    draw.integers(5, 50, draw.integers(1, 300)).tolist() for _ in range(200)
  ]
  seen, shapes = [], set()
  for positions, ids, lengths in token_batches.token_batches(
    tokens, 512, 4, 300, pad=7
  ):
    assert ids.size <= max(512, 4 * ids.shape[1])
    assert len(ids) % 4 == 0 and len(positions) <= len(ids)
    # Nobody is padded to the length that a longer text beside it needs.
    assert (
      len(
        {
          token_batches.LENGTHS[np.searchsorted(token_batches.LENGTHS, size)]
          for size in lengths[: len(positions)]
        }
      )
      == 1
    )
    shapes.add(ids.shape)
    for row, at in enumerate(positions):
      assert ids[row, : lengths[row]].tolist() == tokens[at]
      assert (ids[row, lengths[row] :] == 7).all()
    seen.extend(positions.tolist())
  assert sorted(seen) == list(range(200))
  assert len({length for _, length in shapes}) == len(shapes)


def test_an_embedding_is_the_same_beside_other_texts(model):
  """To the last bit: a resumed run has fewer texts to embed."""
  draw = np.random.default_rng(1)
  texts = [
    ' '.join(draw.choice(list('abcdefgh'), size))
    for size in draw.integers(1, 39, 60)
  ]
  run = flax_encoder.runner(
    _config(model[0]), flax_models.load('f', str(model[0]), 'encoder')
  )

  def embed(some):
    out = np.zeros((len(some), 16), np.float32)
    for positions, vectors in run([texts[i] for i in some]):
      out[positions] = vectors
    return out

  whole = embed(range(60))
  for size in (1, 7, 30):
    some = draw.choice(60, size, replace=False)
    np.testing.assert_array_equal(embed(some), whole[some])


# ---------------------------------------------- what the directory asks for


def _dress(
  folder,
  modules=('Transformer', 'Pooling'),
  pooling=None,
  limits=None,
  prompts=None,
):
  """Makes a model's directory one of sentence-transformers."""
  folder.joinpath('1_Pooling').mkdir()
  folder.joinpath('modules.json').write_text(
    json.dumps(
      [
        {
          'type': f'sentence_transformers.models.{name}',
          'path': '' if not i else f'{i}_{name}',
        }
        for i, name in enumerate(modules)
      ]
    )
  )
  folder.joinpath('1_Pooling', 'config.json').write_text(
    json.dumps(pooling or {'pooling_mode_mean_tokens': True})
  )
  folder.joinpath('sentence_bert_config.json').write_text(
    json.dumps(limits or {})
  )
  folder.joinpath('config_sentence_transformers.json').write_text(
    json.dumps(prompts or {})
  )


def _settings(folder, **fields):
  loaded = flax_models.load('f', str(folder), 'encoder')
  return pooling.read_settings(_config(folder, **fields), loaded)


def test_settings_of_a_sentence_transformers_directory(tmp_path):
  tiny_models.save(tmp_path / 'plain')
  assert _settings(tmp_path / 'plain') == pooling.PoolingSettings(
    'mean', True, 40
  )
  tiny_models.save(tmp_path / 'a')
  _dress(
    tmp_path / 'a',
    pooling={'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False},
    limits={'max_seq_length': 12, 'do_lower_case': True},
  )
  assert _settings(tmp_path / 'a') == pooling.PoolingSettings(
    'cls', False, 12, True
  )
  assert _settings(
    tmp_path / 'a', pooling='last', normalize='yes', max_length=9
  ) == pooling.PoolingSettings('last', True, 9, True)
  tiny_models.save(tmp_path / 'b')
  _dress(
    tmp_path / 'b',
    ('Transformer', 'Pooling', 'Normalize'),
    {'pooling_mode': 'lasttoken'},
    {'max_seq_length': 400},
    {'prompts': {'doc': 'a: '}, 'default_prompt_name': 'doc'},
  )
  assert _settings(tmp_path / 'b') == pooling.PoolingSettings(
    'last', True, 40, False, 'a: '
  )


def test_settings_are_followed(tmp_path):
  params = tiny_models.save(tmp_path)
  _dress(
    tmp_path,
    pooling={'pooling_mode_cls_token': True},
    limits={'max_seq_length': 7},
    prompts={'prompts': {'q': 'ab '}, 'default_prompt_name': 'q'},
  )
  ((_, vectors),) = flax_encoder.vectors(_config(tmp_path), ['cdefghijkl'])
  np.testing.assert_allclose(
    vectors[0],
    _expected(params, 'ab cdefghijkl', 'cls', False, limit=7),
    atol=1e-5,
  )


def test_dense_modules_are_applied(tmp_path):
  params = tiny_models.save(tmp_path)
  _dress(tmp_path, ('Transformer', 'Pooling', 'Dense', 'Normalize'))
  (tmp_path / '2_Dense').mkdir()
  (tmp_path / '2_Dense' / 'config.json').write_text(
    json.dumps({'activation_function': 'torch.nn.modules.activation.Tanh'})
  )
  draw = np.random.default_rng(0)
  weight, bias = draw.normal(0, 1, (5, 16)), draw.normal(0, 1, 5)
  tiny_models.save_weights(
    tmp_path / '2_Dense',
    {
      'linear.weight': weight.astype(np.float32),
      'linear.bias': bias.astype(np.float32),
    },
  )
  ((_, vectors),) = flax_encoder.vectors(_config(tmp_path), ['abc'])
  expected = np.tanh(weight @ _expected(params, 'abc', normalize=False) + bias)
  np.testing.assert_allclose(
    vectors[0], expected / np.linalg.norm(expected), atol=1e-5
  )


@pytest.mark.parametrize(
  'change, match',
  [
    (
      dict(modules=('Transformer', 'Pooling', 'Dense')),
      'Dense.*cannot be read',
    ),
    (dict(modules=('Transformer', 'Pooling', 'CNN')), 'modules .*CNN'),
    (dict(pooling={'pooling_mode_max_tokens': True}), 'pooling max_tokens'),
    (
      dict(
        pooling={
          'pooling_mode_max_tokens': True,
          'pooling_mode_cls_token': True,
        }
      ),
      'max_tokens and cls',
    ),
    (dict(prompts={'default_prompt_name': 'q'}), "settings .* 'prompts'"),
    (dict(pooling={'other': 1}), 'pooling missing'),
  ],
)
def test_a_directory_that_asks_for_more(tmp_path, change, match):
  tiny_models.save(tmp_path)
  _dress(tmp_path, **change)
  with pytest.raises(InputError, match=match):
    encoding.encode(_config(tmp_path), ['a'])


@pytest.mark.parametrize(
  'name, value',
  [
    ('pooling', 'max'),
    ('normalize', 'true'),
    ('max_length', -1),
    ('batch_tokens', -5),
    ('max_length', 41),
    ('model', ''),
  ],
)
def test_fields_are_checked(model, name, value):
  with pytest.raises(InputError, match=f'config.facets.encoder.{name}: '):
    encoding.encode(_config(model[0], **{name: value}), ['a'])


# ------------------------------------------------------------------ the store


def test_only_what_is_missing_is_computed(model, tmp_path, monkeypatch):
  config, store = _config(model[0]), str(tmp_path)
  asked = []
  compute = flax_encoder.vectors
  monkeypatch.setattr(
    flax_encoder,
    'vectors',
    lambda config, texts: (asked.append(texts), compute(config, texts))[1],
  )
  first = encoding.encode(config, TEXTS[:5], store)
  assert asked == [['abc', 'a b', 'zebra quilt']]
  both = encoding.encode(config, TEXTS, store)
  assert len(asked[1]) == len(set(TEXTS)) - 1 - 3
  np.testing.assert_array_equal(both[:5], first)
  np.testing.assert_array_equal(encoding.encode(config, TEXTS, store), both)
  assert len(asked) == 2
  # Another pooling is another store.
  encoding.encode(_config(model[0], pooling='cls'), TEXTS[:1], store)
  assert asked[2:] == [['abc']]


def test_a_finished_store_needs_neither_model_nor_transformers(
  tmp_path, monkeypatch
):
  folder, store = tmp_path / 'model', str(tmp_path / 'store')
  tiny_models.save(folder)
  config = _config(folder)
  expected = encoding.encode(config, TEXTS, store)
  folder.rename(tmp_path / 'gone')
  for package in ('transformers', 'huggingface_hub', 'safetensors'):
    monkeypatch.setitem(sys.modules, package, None)
  np.testing.assert_array_equal(encoding.encode(config, TEXTS, store), expected)
  with pytest.raises(InputError, match='is not a directory'):
    encoding.encode(config, ['new'], store)


def test_another_model_in_the_same_place_is_another_store(tmp_path):
  folder, store = tmp_path / 'model', str(tmp_path / 'store')
  tiny_models.save(folder)
  before = encoding.identity(_config(folder), store)
  first = encoding.encode(_config(folder), TEXTS, store)
  tiny_models.save(folder, seed=1)
  assert encoding.identity(_config(folder), store) != before
  other = encoding.encode(_config(folder), TEXTS, store)
  assert np.abs(other - first).max() > 0.1


def test_a_run_that_breaks_off_goes_on(model, tmp_path, monkeypatch):
  config, store = _config(model[0]), str(tmp_path)
  expected = encoding.encode(config, TEXTS)
  compute, asked = flax_encoder.vectors, []

  def breaking(config, texts):
    asked.append(len(texts))
    for number, batch in enumerate(compute(config, texts)):
      if number == 2 and len(asked) == 1:
        raise KeyboardInterrupt
      asked[0] -= len(batch[0]) if len(asked) == 1 else 0
      yield batch

  monkeypatch.setattr(flax_encoder, 'vectors', breaking)
  with pytest.raises(KeyboardInterrupt):
    encoding.encode(config, TEXTS, store)
  np.testing.assert_array_equal(encoding.encode(config, TEXTS, store), expected)
  assert asked[0] == asked[1] > 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, 7e4])
def test_a_vector_that_half_precision_cannot_hold(
  model, tmp_path, monkeypatch, bad
):
  monkeypatch.setattr(
    flax_encoder,
    'vectors',
    lambda config, texts: iter(
      [
        ([0], np.ones((1, 3), np.float32)),
        ([1], np.full((1, 3), bad, np.float32)),
      ]
    ),
  )
  with pytest.raises(InputError, match='not finite in half precision'):
    encoding.encode(_config(model[0]), ['a', 'b'], str(tmp_path))


_SHARDED = """
import sys
import jax, numpy as np
from dynllm_jax import config as config_lib
from dynllm_jax.text import encoding
assert len(jax.local_devices()) == 4
config = config_lib.default().facets.encoder
config.name, config.model, config.batch_tokens = 'flax', sys.argv[1], 64
np.save(sys.argv[2], encoding.encode(config, eval(sys.argv[3])))
"""


@pytest.mark.slow
def test_batches_are_sharded_over_the_devices(model, tmp_path):
  file = tmp_path / 'out.npy'
  subprocess.run(
    [sys.executable, '-c', _SHARDED, str(model[0]), str(file), repr(TEXTS)],
    check=True,
    env=commands.on_devices(4),
  )
  np.testing.assert_allclose(
    np.load(file), encoding.encode(_config(model[0]), TEXTS), atol=1e-3
  )
