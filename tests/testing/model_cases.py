"""Tiny language models of each family and option, and their random weights.

The package and transformers' torch classes make the same weights from these, so
that what the latter compute can be stored without them: see
tests/text/make_reference_values.py. Only numpy is imported here.
"""

import json
import pathlib

import numpy as np

VALUES = pathlib.Path(__file__).parents[1] / 'text' / 'reference_values.npz'
VOCAB = 57
# Token ids of texts that have different lengths, and tokens of answers.
TEXTS = [
  [7, 8, 9, 31, 12],
  [3, 55, 20, 20, 41, 6, 11, 11, 50, 2, 17, 29, 33, 8, 21, 40, 5, 19],
]
NEW = 8

_SMALL = dict(
  vocab_size=VOCAB,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=1,
  tie_word_embeddings=False,
)
_LLAMA = dict(_SMALL, model_type='llama', hidden_act='silu')
_QWEN2 = dict(_SMALL, model_type='qwen2', hidden_act='silu', rope_theta=1e6)
_GEMMA = dict(
  _SMALL,
  head_dim=8,
  hidden_activation='gelu_pytorch_tanh',
  tie_word_embeddings=True,
)


def _scaled(**fields):
  return dict(_LLAMA, rope_theta=500.0, rope_scaling=fields)


DECODERS = {
  'llama2': _LLAMA,
  'llama biases': dict(_LLAMA, attention_bias=True, mlp_bias=True),
  'linear': _scaled(rope_type='linear', factor=4.0),
  # It stretches only beyond the model's length.
  'dynamic': dict(
    _scaled(type='dynamic', factor=2.0), max_position_embeddings=12
  ),
  'yarn': _scaled(
    rope_type='yarn', factor=4.0, original_max_position_embeddings=16
  ),
  'yarn factors': _scaled(
    rope_type='yarn',
    factor=4.0,
    original_max_position_embeddings=16,
    beta_fast=8.0,
    beta_slow=2.0,
    mscale=0.7,
    mscale_all_dim=0.4,
    truncate=False,
  ),
  'llama3': _scaled(
    rope_type='llama3',
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
  ),
  'smollm2': dict(
    _LLAMA,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    rope_interleaved=False,
    is_llama_config=True,
  ),
  'smollm3': dict(
    _SMALL,
    model_type='smollm3',
    hidden_act='silu',
    rope_theta=5e4,
    no_rope_layers=[1, 0, 1],
    tie_word_embeddings=True,
  ),
  'mistral': dict(
    _SMALL,
    model_type='mistral',
    hidden_act='silu',
    head_dim=8,
    sliding_window=5,
  ),
  'mistral 0.2': dict(
    _SMALL,
    model_type='mistral',
    hidden_act='silu',
    rope_theta=1e6,
    sliding_window=None,
  ),
  'qwen2': _QWEN2,
  'qwen2 windows': dict(
    _QWEN2, use_sliding_window=True, sliding_window=4, max_window_layers=1
  ),
  'qwen3': dict(
    _SMALL,
    model_type='qwen3',
    hidden_act='silu',
    head_dim=8,
    rope_theta=1e6,
    tie_word_embeddings=True,
  ),
  'gemma': dict(_GEMMA, model_type='gemma', hidden_act='gelu_pytorch_tanh'),
  'gemma2': dict(
    _GEMMA,
    model_type='gemma2',
    query_pre_attn_scalar=12,
    sliding_window=6,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
  ),
  'gemma3': dict(
    _GEMMA,
    model_type='gemma3_text',
    query_pre_attn_scalar=8,
    sliding_window=5,
    sliding_window_pattern=3,
    rope_theta=1e6,
    rope_local_base_freq=10000.0,
    rope_scaling={'rope_type': 'linear', 'factor': 8.0},
  ),
}


_BERT = dict(
  vocab_size=VOCAB,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=4,
  max_position_embeddings=40,
  layer_norm_eps=1e-5,
  pad_token_id=0,
)
ENCODERS = {
  'bert': dict(_BERT, model_type='bert', hidden_act='gelu'),
  'bert relu': dict(
    _BERT, model_type='bert', hidden_act='relu', type_vocab_size=3
  ),
  'roberta': dict(
    _BERT, model_type='roberta', type_vocab_size=1, hidden_act='gelu_new'
  ),
  'xlm-roberta': dict(_BERT, model_type='xlm-roberta', pad_token_id=1),
  'mpnet': dict(_BERT, model_type='mpnet', relative_attention_num_buckets=32),
  'distilbert': dict(
    model_type='distilbert',
    vocab_size=VOCAB,
    dim=24,
    hidden_dim=40,
    n_layers=2,
    n_heads=4,
    max_position_embeddings=40,
  ),
  'modernbert': dict(
    {**_BERT, 'num_hidden_layers': 4},
    model_type='modernbert',
    local_attention=6,
    norm_eps=1e-5,
  ),
  'modernbert biases': dict(
    _BERT,
    model_type='modernbert',
    attention_bias=True,
    mlp_bias=True,
    norm_bias=True,
    global_attn_every_n_layers=2,
    local_attention=4,
  ),
}


def weights(shapes, config):
  """Random weights by name.

  Args:
    shapes: of each weight, by the name that the file has for it without the
      prefix `model.`.
    config: of the model.
  """
  draw = np.random.default_rng(0)
  is_gemma = config['model_type'].startswith('gemma')
  values = {}
  for name in sorted(shapes):
    value = draw.normal(0, 1, shapes[name]).astype(np.float32)
    if 'norm' in name.lower() and name.endswith('weight'):
      values[name] = value * 0.3 + (0 if is_gemma else 1)
    else:
      # Wide, so that no part of the network is without effect.
      values[name] = value * 0.25
  return values


def write_config(folder, config):
  """Writes a config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))


def values():
  """What transformers' torch classes compute, by case and kind."""
  with np.load(VALUES) as stored:
    return dict(stored)
