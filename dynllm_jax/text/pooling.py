"""How the hidden states of a language model become one vector for a text.

A sentence-transformers directory says how its vectors are pooled, how long a
text may be and whether vectors are normalized; `config.facets.encoder` may say
otherwise.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.types import Array
from dynllm_jax.types import InputError

_FIELD = 'config.facets.encoder'
# Activations of dense modules, by the last part of their names.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'Identity': lambda x: x,
  'Tanh': jnp.tanh,
  'ReLU': jax.nn.relu,
  'GELU': functools.partial(jax.nn.gelu, approximate=False),
  'Sigmoid': jax.nn.sigmoid,
}
RULES = (
  checks.one_of('pooling', ('auto', 'mean', 'cls', 'last')),
  checks.one_of('normalize', ('auto', 'yes', 'no')),
  checks.at_least('max_length', 0, " (0: the model's own)"),
  checks.at_least('batch_tokens', 0, ' (0: by the device)'),
)


class Dense(NamedTuple):
  """A linear map of vectors, then an activation.

  Attributes:
    kernel: f32[in, out].
    bias: f32[out].
    activation: a name in `_ACTIVATIONS`.
  """

  kernel: np.ndarray
  bias: np.ndarray
  activation: str


@dataclasses.dataclass(frozen=True)
class PoolingSettings:
  """How the hidden states of a text become its vector.

  Attributes:
    pooling: 'mean', 'cls' or 'last'.
    normalize: whether vectors have length 1.
    max_length: tokens that are read of a text, special ones included.
    lower: whether the text is put in lower case first.
    prompt: put before each text.
    dense: maps that a vector goes through before it gets its length.
  """

  pooling: str
  normalize: bool
  max_length: int
  lower: bool = False
  prompt: str = ''
  dense: tuple[Dense, ...] = ()


def check(encoder_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that a Flax encoder has of its own.

  Raises:
    InputError: if one is not allowed.
  """
  checks.check(_FIELD, encoder_config, RULES)


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
    own.get('dense', ()),
  )


def apply(
  settings: PoolingSettings,
  dense: Sequence[tuple[Array, Array]],
  hidden: jax.Array,
  lengths: Array,
) -> jax.Array:
  """Vectors of texts, f32[rows, dim].

  Args:
    settings: how they are made.
    dense: kernels and biases of `settings.dense`, on the device.
    hidden: f32[rows, tokens, hidden], the model's.
    lengths: i32[rows]; what is behind is padding.
  """
  lengths = jnp.asarray(lengths)
  if settings.pooling == 'cls':
    pooled = hidden[:, 0]
  elif settings.pooling == 'last':
    at = (lengths - 1)[:, None, None]
    pooled = jnp.take_along_axis(hidden, at, axis=1)[:, 0]
  else:
    mask = jnp.arange(hidden.shape[1]) < lengths[:, None]
    total = jnp.where(mask[..., None], hidden, 0).sum(axis=1)
    pooled = total / lengths[:, None]

  for (kernel, bias), module in zip(dense, settings.dense):
    pooled = _ACTIVATIONS[module.activation](pooled @ kernel + bias)
  if settings.normalize:
    length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    pooled = pooled / jnp.maximum(length, 1e-12)
  return pooled


def _sentence_transformers(folder: pathlib.Path) -> dict[str, Any]:
  """The settings of a sentence-transformers directory; {} for another one."""
  path = folder / 'modules.json'
  modules = model_files.read_json(path)
  if modules is None:
    return {}
  kinds = [module['type'].rpartition('.')[2] for module in modules]
  middle = kinds[2:-1] if kinds[-1] == 'Normalize' else kinds[2:]
  if (
    kinds[:2] != ['Transformer', 'Pooling']
    or modules[0]['path']
    or set(middle) - {'Dense'}
  ):
    raise InputError(
      f'{path}: modules {", ".join(kinds)}; allowed: Transformer in the '
      'directory itself, Pooling, any number of Dense, and Normalize or not'
    )

  own = {
    'normalize': kinds[-1] == 'Normalize',
    'pooling': _pooling(folder / modules[1]['path'] / 'config.json'),
    'dense': tuple(
      _dense(folder / module['path'])
      for module, kind in zip(modules, kinds)
      if kind == 'Dense'
    ),
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


def _dense(folder: pathlib.Path) -> Dense:
  """A dense module of a sentence-transformers directory.

  Raises:
    InputError: if it has an activation that is not understood, or no weights.
  """
  import safetensors.numpy

  content = model_files.read_json(folder / 'config.json') or {}
  activation = content.get('activation_function', 'Tanh').rpartition('.')[2]
  if activation not in _ACTIVATIONS:
    raise InputError(
      f'{folder / "config.json"}: activation_function {activation!r}; '
      f'allowed: {", ".join(_ACTIVATIONS)}'
    )
  file = folder / 'model.safetensors'
  with model_files.readable(file):
    stored = safetensors.numpy.load_file(file)
    kernel = np.asarray(stored['linear.weight'], np.float32).T
    bias = np.asarray(
      stored.get('linear.bias', np.zeros(kernel.shape[1])), np.float32
    )
  return Dense(kernel, bias, activation)
