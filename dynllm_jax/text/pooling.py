"""How the hidden states of a language model become one vector for a text.

A sentence-transformers directory says how its vectors are pooled, how long a
text may be and whether vectors are normalized; `config.facets.encoder` may say
otherwise.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from dynllm_jax import checks
from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

_FIELD = 'config.facets.encoder'
_MODULES = {'Transformer', 'Pooling', 'Normalize'}
_RULES = (
  checks.one_of('pooling', ('auto', 'mean', 'cls', 'last')),
  checks.one_of('normalize', ('auto', 'yes', 'no')),
  checks.at_least('max_length', 0, " (0: the model's own)"),
  checks.at_least('batch_tokens', 0, ' (0: by the device)'),
)


@dataclasses.dataclass(frozen=True)
class PoolingSettings:
  """How the hidden states of a text become its vector.

  Attributes:
    pooling: 'mean', 'cls' or 'last'.
    normalize: whether vectors have length 1.
    max_length: tokens that are read of a text, special ones included.
    lower: whether the text is put in lower case first.
    prompt: put before each text.
  """

  pooling: str
  normalize: bool
  max_length: int
  lower: bool = False
  prompt: str = ''


def check(encoder_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that a Flax encoder has of its own.

  Raises:
    InputError: if one is not allowed.
  """
  checks.check(_FIELD, encoder_config, _RULES)


def read_settings(
  encoder_config: ml_collections.ConfigDict, loaded: flax_models.Loaded
) -> PoolingSettings:
  """The settings of the config, else those of the model's directory.

  If neither says so, a vector is the mean of all tokens, normalized.

  Args:
    encoder_config: `config.facets.encoder`.
    loaded: the model.

  Raises:
    InputError: if a field is not allowed, or the directory asks for something
      that is not done here.
  """
  check(encoder_config)
  try:
    own = _sentence_transformers(loaded.folder)
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{loaded.folder}: its settings are not those of a sentence-'
      f'transformers directory ({type(error).__name__}: {error}); allowed: '
      'an undamaged one'
    ) from error

  pooling, normalize = encoder_config.pooling, encoder_config.normalize
  if pooling == 'auto':
    pooling = own.get('pooling', 'mean')
  normalize = (
    own.get('normalize', True) if normalize == 'auto' else (normalize == 'yes')
  )

  model_limit = min(
    loaded.max_positions or 512,
    loaded.tokenizer.model_max_length,
  )
  asked = encoder_config.max_length or own.get('max_length') or model_limit
  if asked > model_limit and encoder_config.max_length:
    raise checks.not_allowed(
      f'{_FIELD}.max_length',
      asked,
      f'0 to {model_limit}, which {encoder_config.model} reads at most',
    )

  return PoolingSettings(
    pooling,
    normalize,
    min(asked, model_limit),
    own.get('lower', False),
    own.get('prompt', ''),
  )


def _sentence_transformers(folder: pathlib.Path) -> dict[str, Any]:
  """The settings of a sentence-transformers directory; {} for another one."""
  path = folder / 'modules.json'
  modules = model_files.read_json(path)
  if modules is None:
    return {}
  folders = {
    module['type'].rpartition('.')[2]: module['path'] for module in modules
  }
  if (
    folders.keys() - _MODULES
    or folders.get('Transformer', '')
    or 'Pooling' not in folders
  ):
    raise InputError(
      f'{path}: modules {", ".join(folders)}; allowed: Transformer in the '
      'directory itself, Pooling, and Normalize or not'
    )

  own = {
    'normalize': 'Normalize' in folders,
    'pooling': _pooling(folder / folders['Pooling'] / 'config.json'),
  }
  for name in ('sentence_bert_config.json', 'sentence_roberta_config.json'):
    if limits := model_files.read_json(folder / name):
      own['max_length'] = limits.get('max_seq_length')
      own['lower'] = limits.get('do_lower_case', False)
  more = (
    model_files.read_json(folder / 'config_sentence_transformers.json') or {}
  )
  if more.get('default_prompt_name'):
    own['prompt'] = more['prompts'][more['default_prompt_name']]
  return own


def _pooling(path: pathlib.Path) -> str:
  """The pooling that a sentence-transformers directory asks for."""
  content = model_files.read_json(path) or {}
  names = {
    'mean_tokens': 'mean',
    'cls_token': 'cls',
    'lasttoken': 'last',
    'mean': 'mean',
    'cls': 'cls',
  }

  modes = [
    key.removeprefix('pooling_mode_')
    for key, value in content.items()
    if key.startswith('pooling_mode_') and value
  ]
  if isinstance(content.get('pooling_mode'), str):
    modes = [content['pooling_mode']]
  if len(modes) != 1 or modes[0] not in names:
    raise InputError(
      f'{path}: pooling {" and ".join(modes) or "missing"}; allowed: one of '
      f'{", ".join(names)}, or set {_FIELD}.pooling'
    )
  return names[modes[0]]
