"""Decoders, against what transformers' torch classes compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from dynllm_jax.facets.decoding import Decoding
from dynllm_jax.facets.decoding import Stops
from dynllm_jax.text import decoder
from dynllm_jax.text import decoder_settings
from dynllm_jax.text import flax_models
from dynllm_jax.text import own_weights
from dynllm_jax.types import InputError
from tests.testing import model_cases
from tests.testing import tiny_models

# One of each way to look back; the others only with every combination.
GENERATED = ('llama2', 'dynamic', 'smollm3', 'mistral', 'gemma3')


@pytest.fixture(name='values', scope='module')
def fixture_values():
  return model_cases.values()


def load(folder, config, **kwargs):
  tiny_models.save_case(folder, config)
  return flax_models.load('field', str(folder), 'generator', **kwargs)


def logits(loaded, texts):
  """Logits of all positions of texts, in one pass."""
  ids = np.zeros((len(texts), max(map(len, texts))), np.int32)
  for row, text in enumerate(texts):
    ids[row, : len(text)] = text
  lengths = np.array([len(text) for text in texts])

  @jax.jit
  def run(params):
    hidden, _ = loaded.model.apply(
      {'params': params}, ids, decoder.whole(ids, lengths)
    )
    return loaded.model.apply({'params': params}, hidden, method='logits')

  out = np.asarray(run(loaded.params))
  return [out[row, :length] for row, length in enumerate(lengths)]


@pytest.mark.parametrize('name', model_cases.DECODERS)
def test_it_computes_what_transformers_does(tmp_path, values, name, request):
  loaded = load(tmp_path, model_cases.DECODERS[name])
  for number, got in enumerate(logits(loaded, model_cases.TEXTS)):
    expected = values[f'{name}/logits/{number}']
    assert expected.std() > 0.1
    np.testing.assert_allclose(got, expected, atol=2e-4)
  if name not in GENERATED and not request.config.getoption('all_combinations'):
    return

  generate = Decoding(
    loaded.model, loaded.params, loaded.mesh, 2, 18, Stops(8, (1,), 0)
  )
  answers = generate(model_cases.TEXTS, [0.0] * 2, [1, 2])
  for number, answer in enumerate(answers):
    expected = values[f'{name}/answer/{number}'].tolist()
    if 1 in expected:
      expected = expected[: expected.index(1)]
    assert answer == expected


# ------------------------------------------------------------- the files


def assert_reads(folder, expected):
  loaded = flax_models.load('field', str(folder), 'generator')
  found = jax.tree_util.tree_leaves_with_path(loaded.params)
  assert len(found) == len(expected)
  for path, value in found:
    path = tuple(key.key for key in path)
    stored = expected[own_weights.torch_name(path)]
    np.testing.assert_array_equal(
      value, stored.T if path[-1] == 'kernel' else stored
    )


def test_weights_arrive_from_one_file_or_several(tmp_path):
  config = model_cases.DECODERS['qwen2']
  for shards in (1, 3):
    folder = tmp_path / str(shards)
    assert_reads(folder, tiny_models.save_case(folder, config, shards))
  # Of a model without its head's prefix, and with buffers that nobody reads.
  values = tiny_models.save_case(tmp_path, config)
  tiny_models.save_weights(
    tmp_path, {**values, 'layers.0.self_attn.rotary_emb.inv_freq': np.ones(3)}
  )
  assert_reads(tmp_path, values)


def test_half_precision(tmp_path):
  config = model_cases.DECODERS['smollm2']
  values = tiny_models.save_case(tmp_path, config, dtype=jnp.bfloat16)
  loaded = flax_models.load(
    'field', str(tmp_path), 'generator', dtype=jnp.bfloat16
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {
    jnp.dtype('bfloat16')
  }
  np.testing.assert_array_equal(
    loaded.params['norm']['scale'], values['norm.weight'].astype(jnp.bfloat16)
  )


@pytest.mark.parametrize(
  'field, value, match',
  [
    ('no_such_field', 3, 'the field no_such_field .3. is not understood'),
    ('hidden_act', 'relu6', "hidden_act 'relu6' .* silu, gelu"),
    ('partial_rotary_factor', 0.5, 'partial_rotary_factor 0.5 .* 1.0'),
    ('num_key_value_heads', 3, 'num_key_value_heads 3 does not divide'),
    (
      'rope_scaling',
      {
        'rope_type': 'longrope',
        'short_factor': [1.0] * 3,
        'long_factor': [1.0] * 3,
      },
      "'longrope' is not .* yarn",
    ),
    ('rope_scaling', {'rope_type': 'linear'}, 'factor'),
    (
      'rope_scaling',
      {'rope_type': 'linear', 'factor': 2.0, 'beta': 1},
      "'linear' has beta; allowed: factor",
    ),
    (
      'rope_parameters',
      {'rope_type': 'default', 'partial_rotary_factor': 0.25},
      'partial_rotary_factor is not 1',
    ),
  ],
)
def test_what_is_not_understood_is_refused(tmp_path, field, value, match):
  tiny_models.save_case(tmp_path, model_cases.DECODERS['llama2'])
  model_cases.write_config(
    tmp_path, {**model_cases.DECODERS['llama2'], field: value}
  )
  with pytest.raises(InputError, match=f'^field: .*config.json.*{match}'):
    flax_models.load('field', str(tmp_path), 'generator')


def test_fields_of_a_later_version_say_the_same(tmp_path):
  """transformers 5 writes `rope_parameters`, of Gemma 3 one for each type."""
  read = lambda config: decoder_settings.read(
    tmp_path / 'config.json',
    config,
    transformers.AutoConfig.for_model(**config),
  )
  for name in ('llama3', 'gemma3'):
    older = model_cases.DECODERS[name]
    newer = dict(older)
    ropes = {
      'rope_theta': newer.pop('rope_theta'),
      **newer.pop('rope_scaling'),
    }
    if local := newer.pop('rope_local_base_freq', None):
      ropes = {
        'full_attention': ropes,
        'sliding_attention': {'rope_type': 'default', 'rope_theta': local},
      }
    assert read({**newer, 'rope_parameters': ropes}) == read(older)


def test_weights_that_do_not_fit(tmp_path):
  values = tiny_models.save_case(tmp_path, model_cases.DECODERS['llama2'])
  query = 'layers.0.self_attn.q_proj.weight'
  changes = [
    ({**values, query: values[query][:5]}, r'q_proj.weight is of shape \(5, '),
    (
      {**values, query.replace('weight', 'bias'): np.zeros(24)},
      'q_proj.bias has no place in the model',
    ),
    (
      {name: v for name, v in values.items() if name != query},
      'q_proj.weight is missing from its files',
    ),
  ]
  for weights, match in changes:
    tiny_models.save_weights(tmp_path, weights)
    with pytest.raises(InputError, match=f'^field: .*{match}'):
      flax_models.load('field', str(tmp_path), 'generator')
