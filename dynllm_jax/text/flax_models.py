"""Flax models of Hugging Face transformers, loaded from safetensors.

transformers itself fills a model with random numbers before it loads one, and
reads no sharded safetensors. Here a weight is read, renamed and placed one by
one, and one that is missing or left over is an error, not a warning.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import inspect
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

# Those of transformers' Flax classes that read no text.
_NOT_TEXT = {
  'beit',
  'clip',
  'dinov2',
  'regnet',
  'resnet',
  'vision-text-dual-encoder',
  'vit',
  'wav2vec2',
  'whisper',
}
# Families whose position tables are computed, not learned: they are made for
# the longest input that may come, which their masks need squared.
_COMPUTED_POSITIONS = {'gemma', 'gptj', 'llama', 'mistral'}
# The tables come out wrong where a head is wider than they are long.
_MIN_POSITIONS = 512

# What Flax classes leave out without a word, and the value that needs nothing.
_IGNORED = {
  'rope_scaling': None,
  'rope_theta': 10_000.0,
  'rope_type': 'default',
  'position_embedding_type': 'absolute',
}

Flat = dict[tuple[str, ...], Any]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, ready to be called with its parameters.

  Attributes:
    model: of transformers, without parameters in it; call
      `model(..., params=params)` or `model.module.apply`.
    params: numpy arrays, in the type they are stored in.
    tokenizer: of transformers.
    folder: where its files are.
  """

  model: Any
  params: Any
  tokenizer: Any
  folder: pathlib.Path


def load(
  field: str,
  name: str,
  kind: str,
  dtype: Any = jnp.float32,
  max_positions: int | None = None,
) -> Loaded:
  """Loads a model and its tokenizer.

  Args:
    field: the config's field, for messages.
    name: a local directory or a name on the Hugging Face Hub.
    kind: 'encoder' (texts to hidden states; of T5 its encoder) or 'generator'
      (a causal or a sequence-to-sequence language model).
    dtype: the type it computes in.
    max_positions: the longest input and output together that will come; saves
      memory where positions are computed. None for what the model allows.

  Raises:
    InputError: if there is no such model, transformers has no Flax class for
      it, or its files do not fit.
  """
  folder = model_files.locate(field, name)
  try:
    import transformers
  except ImportError as error:
    raise model_files.missing(field, error) from error
  transformers.utils.logging.set_verbosity_error()
  settings = _config(field, name, kind, folder, transformers)
  if max_positions and settings.model_type in _COMPUTED_POSITIONS:
    settings.max_position_embeddings = min(
      settings.max_position_embeddings, max(max_positions, _MIN_POSITIONS)
    )
  model_class = _class(field, name, settings, kind)
  _restore_clip(sys.modules[model_class.__module__])
  model = model_class(settings, dtype=dtype, _do_init=False)
  try:
    params = _params(model, folder)
  except InputError as error:
    raise InputError(f'{field}: {error}') from error
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True
    )
  # transformers raises whatever its parsers do.
  except Exception as error:
    raise InputError(
      f'{field}: the tokenizer in {folder} cannot be read ({error}); allowed: '
      'a directory with tokenizer.json or what its kind needs'
    ) from error
  return Loaded(model, params, tokenizer, folder)


def _config(
  field: str, name: str, kind: str, folder: pathlib.Path, transformers: Any
) -> Any:
  """The model's configuration, with what its Flax class cannot do refused."""
  raw = model_files.read_json(folder / 'config.json') or {}
  try:
    settings = transformers.AutoConfig.from_pretrained(
      folder, local_files_only=True
    )
  except (KeyError, OSError, ValueError) as error:
    if 'model_type' in raw:
      raise _no_class(field, name, raw['model_type'], kind) from error
    raise InputError(
      f'{field}: {folder / "config.json"} is missing or says no model_type; '
      'allowed: a directory as transformers saves it'
    ) from error
  # Where transformers 5 keeps what 4 has at the top.
  newer = raw.get('rope_parameters') or {}
  for key, allowed in _IGNORED.items():
    value = newer.get(key, getattr(settings, key, allowed))
    if value != allowed:
      raise InputError(
        f'{field}: {name!r} has {key} {value!r} in its config.json, which '
        f"transformers' Flax classes do not heed; allowed: {allowed!r}"
      )
  # Without this, Flax Mistral lets a token see nothing but itself.
  if settings.model_type == 'mistral' and not settings.sliding_window:
    settings.sliding_window = settings.max_position_embeddings
  return settings


def _class(field: str, name: str, settings: Any, kind: str) -> Any:
  """The Flax class for a configuration."""
  import transformers
  from transformers.models.auto import modeling_flax_auto as auto

  if kind == 'encoder' and settings.is_encoder_decoder:
    halves = {'t5': 'FlaxT5EncoderModel', 'mt5': 'FlaxMT5EncoderModel'}
    if settings.model_type in halves:
      return getattr(transformers, halves[settings.model_type])
    raise _no_class(field, name, settings.model_type, kind)
  mapping = {
    'encoder': auto.FLAX_MODEL_MAPPING,
    'generator': auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if settings.is_encoder_decoder
    else auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING,
  }[kind]
  if settings.model_type in _NOT_TEXT or type(settings) not in mapping.keys():
    raise _no_class(field, name, settings.model_type, kind)
  return mapping[type(settings)]


def _no_class(field: str, name: str, model_type: str, kind: str) -> InputError:
  from transformers.models.auto import modeling_flax_auto as auto

  known = {
    'encoder': set(auto.FLAX_MODEL_MAPPING_NAMES),
    'generator': set(auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    | set(auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
  }[kind]
  return InputError(
    f'{field}: {name!r} is of the architecture {model_type!r}, for which '
    f'transformers has no Flax {kind}; allowed: '
    f'{", ".join(sorted(known - _NOT_TEXT))}'
  )


def _restore_clip(module: Any) -> None:
  """Gives T5 the argument `a_max` back, which jnp.clip no longer has."""
  # The older families import jax.numpy as a whole, under this name.
  if 'a_max' in inspect.signature(jnp.clip).parameters or (
    getattr(module, 'jnp', None) is not jnp
  ):
    return

  class Numpy:
    """jax.numpy as it was."""

    def __getattr__(self, name: str) -> Any:
      return getattr(jnp, name)

    @staticmethod
    def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Any:
      """Keeps `x` within bounds."""
      return jnp.clip(x, a_min, a_max)

  module.jnp = Numpy()


# ------------------------------------------------------------------ weights


def _params(model: Any, folder: pathlib.Path) -> Any:
  """The model's parameters, each of the shape that it must have."""
  from flax import traverse_util

  wanted = traverse_util.flatten_dict(model.params_shape_tree)
  found: Flat = {}
  for key, value, file in _weights(model, folder, wanted):
    if key not in wanted:
      # A bias beside a kernel that has none is another architecture; a head
      # that is not asked for, or a buffer, is not.
      if any(key[:-1] == other[:-1] for other in wanted):
        raise InputError(
          f'{file}: the weight {".".join(key)} has no place in '
          f'{type(model).__name__}; the model is of another architecture'
        )
      continue
    if value.shape != wanted[key].shape:
      raise InputError(
        f'{file}: the weight {".".join(key)} is of shape {value.shape}, '
        f'not {wanted[key].shape}, as {folder / "config.json"} has it'
      )
    found[key] = value
  for key in wanted.keys() - found.keys():
    found[key] = _stand_in(model, folder, key, wanted[key], found)
  return traverse_util.unflatten_dict(found)


def _stand_in(
  model: Any,
  folder: pathlib.Path,
  key: tuple[str, ...],
  shape: Any,
  found: Flat,
) -> np.ndarray:
  """What a weight that is not stored must be."""
  if 'pooler' in key:  # nothing here reads it
    return np.zeros(shape.shape, np.float32)
  if key == ('lm_head', 'kernel') and model.config.tie_word_embeddings:
    tables = [
      value
      for other, value in found.items()
      if other[-2:]
      in (
        ('embed_tokens', 'embedding'),
        ('wte', 'embedding'),
        ('shared', 'embedding'),
      )
    ]
    if len(tables) == 1:
      return tables[0].T
  raise InputError(
    f'{folder}: the weight {".".join(key)} of {type(model).__name__} is '
    'missing from its files; allowed: a complete model'
  )


def _weights(
  model: Any, folder: pathlib.Path, wanted: Flat
) -> Iterator[tuple[tuple[str, ...], np.ndarray, pathlib.Path]]:
  """Every weight that is stored, under its name in Flax."""
  files = model_files.weights(folder)
  prefix = model.base_model_prefix
  has_prefix = any(key[0] == prefix for key in wanted)
  for file in _shards(folder, files):
    for key, value in _read(file, wanted, prefix):
      # A head's file for the bare model, or the other way round.
      if key[0] == prefix and not has_prefix:
        key = key[1:]
      elif has_prefix and (prefix, *key) in wanted:
        key = (prefix, *key)
      yield key, value, file


def _shards(
  folder: pathlib.Path, files: list[pathlib.Path]
) -> list[pathlib.Path]:
  """The files that an index names, all of them there, or the only one."""
  kind = files[0].suffix
  for path in files:
    if path.name in ('model.safetensors', 'flax_model.msgpack'):
      return [path]
  for index in folder.glob(f'*{kind}.index.json'):
    try:
      named = sorted(set(model_files.read_json(index)['weight_map'].values()))
    except (KeyError, TypeError, AttributeError) as error:
      raise InputError(
        f'{index}: it names no weights ({type(error).__name__}: {error}); '
        'allowed: an undamaged one'
      ) from error
    for name in named:
      if not (folder / name).exists():
        raise InputError(
          f'{folder / name}: missing, though {index.name} names it; allowed: '
          'a complete model'
        )
    return [folder / name for name in named]
  return files


def _read(
  file: pathlib.Path, wanted: Flat, prefix: str
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  """A file's weights, under the names that Flax gives them."""
  from flax import serialization
  from flax import traverse_util

  if file.suffix == '.msgpack':
    with _readable(file):
      tree = serialization.msgpack_restore(file.read_bytes())
    # Large tables are stored under the names of their paths.
    for key, value in traverse_util.flatten_dict(tree).items():
      yield tuple('/'.join(key).split('/')), np.asarray(value)
    return
  import safetensors
  from transformers.modeling_flax_pytorch_utils import (
    rename_key_and_reshape_tensor,
  )

  with _readable(file), safetensors.safe_open(file, 'numpy') as tensors:
    from_flax = (tensors.metadata() or {}).get('format') == 'flax'
    for name in tensors.keys():
      key, value = tuple(name.split('.')), tensors.get_tensor(name)
      if not from_flax:
        bare = key[1:] if key[0] == prefix else key
        key, value = rename_key_and_reshape_tensor(bare, value, wanted, prefix)
      yield key, value


@contextlib.contextmanager
def _readable(file: pathlib.Path) -> Iterator[None]:
  """Names the file in whatever its parser raises."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    raise InputError(
      f'{file}: cannot be read ({type(error).__name__}: {error}); it may be '
      'cut short'
    ) from error
