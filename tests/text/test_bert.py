"""Encoders, against what transformers' torch classes compute."""

import jax
import numpy as np
import pytest

from dynllm_jax.text import flax_models
from dynllm_jax.types import InputError
from tests.testing import model_cases
from tests.testing import tiny_models


@pytest.fixture(name='values', scope='module')
def fixture_values():
  return model_cases.values()


@pytest.mark.parametrize('name', model_cases.ENCODERS)
def test_it_computes_what_transformers_does(tmp_path, values, name):
  tiny_models.save_case(tmp_path, model_cases.ENCODERS[name])
  loaded = flax_models.load('field', str(tmp_path), 'encoder')
  lengths = np.array(list(map(len, model_cases.TEXTS)), np.int32)
  # Whatever the padding is, it is not seen.
  ids = np.full((len(lengths), lengths.max()), 9, np.int32)
  for row, text in enumerate(model_cases.TEXTS):
    ids[row, : len(text)] = text
  hidden = np.asarray(jax.jit(loaded.hidden)(loaded.params, ids, lengths))
  for number, length in enumerate(lengths):
    expected = values[f'{name}/hidden/{number}']
    assert expected.std() > 0.1
    np.testing.assert_allclose(hidden[number, :length], expected, atol=2e-4)


def test_the_oldest_names_of_norms_are_read(tmp_path):
  config = model_cases.ENCODERS['bert']
  values = tiny_models.save_case(tmp_path, config)
  old = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): value
    for name, value in values.items()
  }
  assert 'embeddings.LayerNorm.gamma' in old
  tiny_models.save_weights(
    tmp_path,
    {**old, 'cls.seq_relationship.bias': old['embeddings.LayerNorm.beta']},
  )
  norm = flax_models.load('field', str(tmp_path), 'encoder').params['LayerNorm']
  np.testing.assert_array_equal(
    norm['scale'], values['embeddings.LayerNorm.weight']
  )
  np.testing.assert_array_equal(
    norm['bias'], values['embeddings.LayerNorm.bias']
  )


@pytest.mark.parametrize(
  'name, field, value, match',
  [
    (
      'bert',
      'position_embedding_type',
      'relative_key',
      "'relative_key' .*'abs",
    ),
    ('bert', 'is_decoder', True, 'is_decoder True'),
    ('bert', 'adapters', {}, 'the field adapters'),
    ('mpnet', 'relative_attention_num_buckets', 16, 'num_buckets 16 .* 32'),
    ('distilbert', 'activation', 'relu6', "activation 'relu6'.* gelu_new"),
  ],
)
def test_what_is_not_understood_is_refused(tmp_path, name, field, value, match):
  config = model_cases.ENCODERS[name]
  tiny_models.save_case(tmp_path, config)
  model_cases.write_config(tmp_path, {**config, field: value})
  with pytest.raises(InputError, match=f'^field: .*config.json.*{match}'):
    flax_models.load('field', str(tmp_path), 'encoder')
