"""Language models from files: formats, places, and what is wrong with them."""

import http.server
import json
import sys
import threading

from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.types import InputError
from tests.testing import tiny_models

FIELD = 'facets.encoder.model'


def _load(folder, kind='encoder', **kwargs):
  return flax_models.load(FIELD, str(folder), kind, **kwargs)


def _assert_same(loaded, params):
  found = tiny_models.flat(loaded.params)
  assert found.keys() == params.keys()
  for key, value in params.items():
    np.testing.assert_array_equal(found[key], value, err_msg=str(key))


@pytest.mark.parametrize('kind', ['electra', 'gpt2', 't5'])
@pytest.mark.parametrize('shards', [1, 3])
def test_weights_arrive_as_they_were_saved(tmp_path, kind, shards):
  params = tiny_models.save(tmp_path, kind, shards)
  loaded = _load(tmp_path, 'encoder' if kind == 'electra' else 'generator')
  _assert_same(loaded, params)
  assert loaded.tokenizer('abc a')['input_ids'] == [
    2,
    5,
    5 + 26 + 1,
    5 + 26 + 2,
    5,
    3,
  ]


def test_weights_saved_by_flax(tmp_path):
  params = tiny_models.save(tmp_path, 'electra')
  tree = traverse_util.unflatten_dict(params)
  (tmp_path / 'model.safetensors').unlink()
  tiny_models.save_weights(
    tmp_path, {'.'.join(key): v for key, v in params.items()}, form='flax'
  )
  _assert_same(_load(tmp_path), params)
  (tmp_path / 'model.safetensors').unlink()
  (tmp_path / 'flax_model.msgpack').write_bytes(serialization.to_bytes(tree))
  _assert_same(_load(tmp_path), params)
  (tmp_path / 'flax_model.msgpack').write_bytes(
    serialization.to_bytes({'electra': tree})
  )
  _assert_same(_load(tmp_path), params)


def test_half_precision(tmp_path):
  params = tiny_models.save(tmp_path, 'electra')
  tiny_models.save_weights(
    tmp_path,
    {
      tiny_models.torch_name(key): (v.T if key[-1] == 'kernel' else v).astype(
        jnp.bfloat16
      )
      for key, v in params.items()
    },
  )
  _assert_same(
    _load(tmp_path, dtype=jnp.bfloat16),
    {key: v.astype(jnp.bfloat16) for key, v in params.items()},
  )


def test_t5_runs_without_the_removed_argument(tmp_path):
  tiny_models.save(tmp_path, 't5')
  ids = np.full((1, 30), 7)
  loaded = _load(tmp_path, 'generator')
  shapes = jax.eval_shape(
    lambda params: (
      loaded.model(ids, decoder_input_ids=ids[:, :3], params=params).logits
    ),
    loaded.params,
  )
  assert shapes.shape == (1, 3, len(tiny_models.VOCABULARY))
  half = _load(tmp_path)
  shapes = jax.eval_shape(
    lambda params: half.model(ids, params=params).last_hidden_state, half.params
  )
  assert shapes.shape == (1, 30, 16)


# ----------------------------------------------------------- what is wrong


def test_places_that_hold_no_model(tmp_path):
  with pytest.raises(InputError, match=f"{FIELD}: '' is not allowed"):
    _load('')
  with pytest.raises(InputError, match='is not a directory; allowed'):
    _load(tmp_path / 'none')
  tiny_models.save(tmp_path)
  (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
  with pytest.raises(InputError, match='has no weights in .*safetensors'):
    _load(tmp_path)


@pytest.mark.parametrize('kind', ['encoder', 'generator'])
@pytest.mark.parametrize('model_type', ['no_such', 'vit'])
def test_an_architecture_without_a_flax_class(tmp_path, kind, model_type):
  tiny_models.save(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': model_type}))
  with pytest.raises(InputError) as error:
    _load(tmp_path, kind)
  text = str(error.value)
  assert f"of the architecture '{model_type}'" in text
  allowed = text.partition('allowed: ')[2].split(', ')
  assert {'gpt2', 'llama', 'mistral', 'gemma', 't5'} <= set(allowed)
  assert ('distilbert' in allowed) == (kind == 'encoder')
  assert 'vit' not in allowed


@pytest.mark.parametrize(
  'content, match',
  [
    (None, 'says no model_type'),
    ('{', 'config.json: not valid JSON'),
    ('{"hidden_size": 3}', 'says no model_type'),
  ],
)
def test_a_broken_config(tmp_path, content, match):
  tiny_models.save(tmp_path)
  (tmp_path / 'config.json').unlink()
  if content:
    (tmp_path / 'config.json').write_text(content)
  with pytest.raises(InputError, match=match):
    _load(tmp_path)


@pytest.mark.parametrize(
  'field, value',
  [
    ('rope_theta', 5e5),
    ('rope_scaling', {'rope_type': 'dynamic', 'factor': 2.0}),
    ('rope_parameters', {'rope_type': 'default', 'rope_theta': 5e5}),
    ('rope_parameters', {'rope_type': 'llama3'}),
  ],
)
def test_what_flax_would_leave_out_is_refused(tmp_path, field, value):
  tiny_models.save(tmp_path, 'gpt2')
  path = tmp_path / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  with pytest.raises(InputError, match='has rope_.* ignore; allowed'):
    _load(tmp_path, 'generator')


def test_weights_that_do_not_fit(tmp_path):
  params = tiny_models.save(tmp_path, 'electra')
  stored = {
    tiny_models.torch_name(key): v.T if key[-1] == 'kernel' else v
    for key, v in params.items()
  }
  query = 'encoder.layer.0.attention.self.query.weight'
  with_bias = {**stored, 'embeddings.word_embeddings.bias': np.zeros(3)}
  tiny_models.save_weights(tmp_path, with_bias)
  with pytest.raises(InputError, match='word_embeddings.bias has no place'):
    _load(tmp_path)
  tiny_models.save_weights(
    tmp_path, {**stored, 'embeddings.position_ids': np.zeros((1, 40))}
  )
  _assert_same(_load(tmp_path), params)
  tiny_models.save_weights(tmp_path, {**stored, query: stored[query][:3]})
  with pytest.raises(InputError, match=r'query.kernel is of shape \(16, 3\)'):
    _load(tmp_path)
  del stored[query]
  tiny_models.save_weights(tmp_path, stored)
  with pytest.raises(InputError, match='query.kernel of .* is missing'):
    _load(tmp_path)


def test_files_that_are_cut_short_or_missing(tmp_path):
  tiny_models.save(tmp_path, shards=2)
  file = tmp_path / 'model-00002-of-00002.safetensors'
  whole = file.read_bytes()
  file.write_bytes(whole[:-10])
  with pytest.raises(InputError, match=f'{file}: cannot be read'):
    _load(tmp_path)
  file.unlink()
  with pytest.raises(InputError, match=f'{file}: missing, though'):
    _load(tmp_path)


def test_a_machine_without_transformers(tmp_path, monkeypatch):
  tiny_models.save(tmp_path / 'model')
  name, notes = str(tmp_path / 'model'), str(tmp_path / 'notes')
  noted = model_files.identity(FIELD, name, notes)
  monkeypatch.setitem(sys.modules, 'transformers', None)
  with pytest.raises(InputError, match='needs the package transformers'):
    _load(name)
  assert model_files.identity(FIELD, name, '') == noted
  (tmp_path / 'model').rename(tmp_path / 'elsewhere')
  assert model_files.identity(FIELD, name, notes) == noted
  with pytest.raises(InputError, match='is not a directory'):
    model_files.identity(FIELD, name, '')


def test_the_identity_is_of_what_decides_a_result(tmp_path):
  tiny_models.save(tmp_path / 'one')
  identity = lambda name: model_files.identity(FIELD, str(tmp_path / name))
  first = identity('one')
  (tmp_path / 'one' / 'README.md').write_text('...')
  assert identity('one') == first
  tiny_models.save(tmp_path / 'two')
  assert identity('two') == first
  (tmp_path / 'two' / 'modules.json').write_text('[]')
  assert identity('two') != first
  tiny_models.save(tmp_path / 'three', seed=1)
  assert identity('three') != first


# -------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A server of one model, owner/tiny; `hub.asked` lists what was asked."""
  from huggingface_hub import constants
  from huggingface_hub import file_download
  from huggingface_hub.utils._http import reset_sessions

  tiny_models.save(tmp_path / 'remote')
  files = {
    path.name: path.read_bytes() for path in (tmp_path / 'remote').iterdir()
  }
  files['pytorch_model.bin'] = b'never fetched'
  commit = 'a' * 40

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.server.asked.append(self.path)
      path = self.path.split('?')[0]
      if path.startswith('/api/models/owner/tiny'):
        self.answer(
          json.dumps(
            {
              'id': 'owner/tiny',
              'sha': commit,
              'siblings': [{'rfilename': name} for name in files],
            }
          ).encode()
        )
      elif path.startswith('/owner/tiny/resolve/'):
        self.answer(files[path.rpartition('/')[2]])
      else:
        self.send_response(404)
        self.send_header('X-Error-Code', 'RepoNotFound')
        self.send_header('Content-Length', '0')
        self.end_headers()

    do_HEAD = do_GET

    def answer(self, body):
      self.send_response(200)
      self.send_header('X-Repo-Commit', commit)
      self.send_header('ETag', f'"{hash(body)}"')
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(body)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.asked = []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  place = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setattr(constants, 'ENDPOINT', place)
  monkeypatch.setattr(
    file_download,
    'HUGGINGFACE_CO_URL_TEMPLATE',
    place + '/{repo_id}/resolve/{revision}/{filename}',
  )
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  # A session that another test opened offline stays offline.
  reset_sessions()
  yield server
  server.shutdown()
  server.server_close()


def test_a_model_of_the_hub_is_fetched_once(hub, tmp_path):
  loaded = flax_models.load(FIELD, 'owner/tiny', 'encoder')
  _assert_same(loaded, tiny_models.flat(_load(tmp_path / 'remote').params))
  assert not any('pytorch_model.bin' in path for path in hub.asked)
  asked = len(hub.asked)
  flax_models.load(FIELD, 'owner/tiny', 'encoder')
  assert len(hub.asked) == asked
  assert model_files.identity(FIELD, 'owner/tiny') == model_files.identity(
    FIELD, str(tmp_path / 'remote')
  )


def test_a_model_that_the_hub_does_not_have(hub):
  with pytest.raises(InputError, match="'owner/none' is neither a directory"):
    flax_models.load(FIELD, 'owner/none', 'encoder')
  with pytest.raises(InputError, match="'a b' is neither a directory"):
    flax_models.load(FIELD, 'a b', 'encoder')


def test_no_network(hub, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  with pytest.raises(
    InputError,
    match="'owner/tiny' is not in the local cache .* cannot be reached",
  ):
    flax_models.load(FIELD, 'owner/tiny', 'encoder')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(InputError, match='cannot be reached'):
    flax_models.load(FIELD, 'owner/tiny', 'encoder')
