"""Weights of eight bits, against the same weights rounded in the files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.text import decoder
from dynllm_jax.text import flax_models
from dynllm_jax.types import InputError
from tests.testing import model_cases
from tests.testing import tiny_models


def rounded(weight):
  """A weight in multiples of each row's largest value over 127."""
  if weight.ndim < 2:
    return weight
  scales = np.abs(weight).max(1, keepdims=True) / 127
  return (np.rint(weight / scales) * scales).astype(np.float32)


def logits(folder, **kwargs):
  """Of all positions of a text, and the parameters."""
  loaded = flax_models.load('field', str(folder), 'generator', **kwargs)
  ids = np.array([model_cases.TEXTS[0]])
  context = decoder.whole(ids, np.array([ids.shape[1]]))

  @jax.jit
  def run(params):
    return loaded.model.apply(
      {'params': params}, ids, context, method='init_all'
    )

  return np.asarray(run(loaded.params)), loaded.params


@pytest.mark.parametrize('is_tied', [True, False])
def test_it_computes_with_rounded_weights(tmp_path, is_tied):
  case = model_cases.DECODERS['llama biases']
  case = dict(case, num_hidden_layers=1, tie_word_embeddings=is_tied)
  values = tiny_models.save_case(tmp_path, case)
  got, params = logits(tmp_path, is_int8=True)
  as_stored, _ = logits(tmp_path)

  up = params['layers_0']['mlp']['up_proj']
  assert {name: leaf.dtype for name, leaf in up.items()} == {
    'kernel': jnp.int8,
    'kernel_scale': jnp.float32,
    'bias': jnp.float32,
  }
  assert np.abs(up['kernel']).max(0).tolist() == [127] * 40
  tiny_models.save_weights(
    tmp_path, {name: rounded(value) for name, value in values.items()}
  )
  expected, _ = logits(tmp_path)
  np.testing.assert_allclose(got, expected, atol=2e-5)
  assert 1e-3 < np.abs(got - as_stored).max() < 0.2 * as_stored.std()


def test_a_channel_of_zeros(tmp_path):
  case = dict(model_cases.DECODERS['llama2'], num_hidden_layers=1)
  values = tiny_models.save_case(tmp_path, case)
  values['embed_tokens.weight'][3] = 0
  tiny_models.save_weights(tmp_path, values)
  loaded = flax_models.load('field', str(tmp_path), 'generator', is_int8=True)
  table = loaded.params['embed_tokens']
  assert table['embedding_scale'][3] == 1
  assert not table['embedding'][3].any()


def test_an_encoder_of_eight_bits(tmp_path):
  tiny_models.save_case(tmp_path, model_cases.ENCODERS['bert'])
  kind = json.loads((tmp_path / 'config.json').read_text())['model_type']
  with pytest.raises(
    InputError, match=f'field: .*{kind!r}, whose weights .* allowed: gemma'
  ):
    flax_models.load('field', str(tmp_path), 'encoder', is_int8=True)
