"""Language models of a few thousand random weights, saved as real ones are."""

import json
import sys

from flax import traverse_util
import jax
import numpy as np
from safetensors.numpy import save_file
import tokenizers
import transformers

from dynllm_jax.text import decoder_settings
from dynllm_jax.text import flax_models
from tests.testing import model_cases

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
VOCABULARY = [
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  *LETTERS,
  *(f'##{letter}' for letter in LETTERS),
]
_SMALL = dict(
  vocab_size=len(VOCABULARY),
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=40,
)
KINDS = {
  'bert': (transformers.BertConfig, 'FlaxBertModel', _SMALL),
  # Of those that this package has no network of its own for.
  'electra': (
    transformers.ElectraConfig,
    'FlaxElectraModel',
    {**_SMALL, 'embedding_size': 16},
  ),
  'gpt2': (
    transformers.GPT2Config,
    'FlaxGPT2LMHeadModel',
    dict(
      vocab_size=len(VOCABULARY),
      n_embd=16,
      n_layer=2,
      n_head=2,
      n_positions=40,
      eos_token_id=3,
    ),
  ),
  't5': (
    transformers.T5Config,
    'FlaxT5ForConditionalGeneration',
    dict(
      vocab_size=len(VOCABULARY),
      d_model=16,
      d_kv=8,
      num_layers=1,
      num_heads=2,
      d_ff=24,
      decoder_start_token_id=0,
      eos_token_id=3,
    ),
  ),
}


def save(folder, kind='bert', shards=1, seed=0, **settings):
  """Saves a model with torch's names of its weights; returns them, flat.

  Every letter is a token, the first of a word and the rest apart.
  """
  config_class, model_name, small = KINDS[kind]
  config = config_class(**{**small, **settings})
  model_class = getattr(transformers, model_name)
  flax_models.restore_clip(sys.modules[model_class.__module__])
  shapes = model_class(config, _do_init=False).params_shape_tree
  draw = np.random.default_rng(seed)
  # Wide, so that no part of the network is without effect.
  params = {
    key: draw.normal(0, 0.5, leaf.shape).astype(np.float32)
    for key, leaf in traverse_util.flatten_dict(shapes).items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  config.architectures = [model_name.removeprefix('Flax')]
  config.save_pretrained(folder)
  save_weights(
    folder,
    {
      torch_name(key): value.T if key[-1] == 'kernel' else value
      for key, value in params.items()
    },
    shards,
  )
  save_tokenizer(folder)
  return params


def torch_name(key):
  """The name of a weight in a file that torch has written."""
  last = 'weight' if key[-1] in ('kernel', 'scale', 'embedding') else key[-1]
  return '.'.join((*key[:-1], last))


def save_weights(folder, tensors, shards=1, form='pt'):
  """Writes safetensors, in `shards` files with an index."""
  tensors = {
    name: np.ascontiguousarray(value) for name, value in tensors.items()
  }
  if shards == 1:
    save_file(tensors, folder / 'model.safetensors', {'format': form})
    return
  names, where = sorted(tensors), {}
  for shard in range(shards):
    file = f'model-{shard + 1:05}-of-{shards:05}.safetensors'
    part = {name: tensors[name] for name in names[shard::shards]}
    save_file(part, folder / file, {'format': form})
    where.update(dict.fromkeys(part, file))
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': where})
  )


def flat(params):
  """Parameters by path, as numpy arrays."""
  return jax.tree.map(np.asarray, traverse_util.flatten_dict(params))


def save_case(folder, config, shards=1, dtype=np.float32):
  """Saves a model of `model_cases`, and a tokenizer; returns its weights."""
  model_cases.write_config(folder, config)
  raw = json.loads((folder / 'config.json').read_text())
  settings = transformers.AutoConfig.from_pretrained(folder)
  model = flax_models.own_model(folder, raw, settings, np.float32)
  named = {
    flax_models.weight_name(model, tuple(key.key for key in path)): (
      leaf.shape[::-1] if path[-1].key == 'kernel' else leaf.shape
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      flax_models.own_shapes(model)
    )
  }
  values = model_cases.weights(named, config)
  family = config['model_type']
  prefix = 'model.' if family in decoder_settings.FAMILIES else f'{family}.'
  save_weights(
    folder,
    {
      (prefix if not name.startswith('lm_head') else '') + name: v.astype(dtype)
      for name, v in values.items()
    },
    shards,
  )
  save_tokenizer(folder, is_fast=True)
  return values


def save_tokenizer(folder, is_fast=False):
  """Every letter is a token, the first of a word and the rest apart.

  Args:
    folder: the model's.
    is_fast: whether it is in one file, which every version of transformers
      reads whatever the model is.
  """
  vocabulary = folder / 'vocab.txt'
  vocabulary.write_text('\n'.join(VOCABULARY) + '\n')
  fields = {'tokenizer_class': 'BertTokenizer', 'model_max_length': 40}
  if is_fast:
    made = tokenizers.BertWordPieceTokenizer(str(vocabulary))
    made.save(str(folder / 'tokenizer.json'))
    fields['tokenizer_class'] = 'PreTrainedTokenizerFast'
    for name in ('pad', 'unk', 'cls', 'sep', 'mask'):
      fields[f'{name}_token'] = f'[{name.upper()}]'
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))
