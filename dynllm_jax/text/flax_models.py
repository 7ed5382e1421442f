"""Language models: Flax classes of Hugging Face transformers, with weights."""

import dataclasses
import inspect
import pathlib
import sys
from typing import Any

import jax.numpy as jnp

from dynllm_jax.text import flax_weights
from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

# Architectures with a Flax class in transformers that do not read text.
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
# Families that compute their position tables, as long as the longest input may
# be; their masks take the square of that.
_COMPUTED_POSITIONS = {'gemma', 'gptj', 'llama', 'mistral'}
# A table comes out wrong if it is shorter than a head is wide.
_MIN_POSITIONS = 512

# Settings that the Flax classes ignore, and the value with which that is right.
_IGNORED = {
  'rope_scaling': None,
  'rope_theta': 10_000.0,
  'rope_type': 'default',
  'position_embedding_type': 'absolute',
}


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, ready to be called with its parameters.

  Attributes:
    model: a Flax model of transformers, without parameters; call it as
      `model(..., params=params)`, or use `model.module.apply`.
    params: numpy arrays, in the type they are stored in.
    tokenizer: the tokenizer of transformers.
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
    dtype: the type in which it computes.
    max_positions: the most tokens that input and output will have together; it
      saves memory where position tables are computed. None for what the model
      allows.

  Raises:
    InputError: if there is no such model, transformers has no Flax class for
      it, or its files do not fit.
  """
  folder = model_files.locate(field, name)
  try:
    import transformers
  except ImportError as error:
    raise model_files.no_transformers(field, error) from error
  transformers.utils.logging.set_verbosity_error()

  settings = _config(field, name, kind, folder, transformers)
  if max_positions and settings.model_type in _COMPUTED_POSITIONS:
    settings.max_position_embeddings = min(
      settings.max_position_embeddings, max(max_positions, _MIN_POSITIONS)
    )

  model_class = _model_class(field, name, settings, kind)
  restore_clip(sys.modules[model_class.__module__])
  model = model_class(settings, dtype=dtype, _do_init=False)
  try:
    params = flax_weights.read_params(model, folder)
  except InputError as error:
    raise InputError(f'{field}: {error}') from error
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True
    )
  # The parsers behind it raise errors of many classes.
  except Exception as error:
    raise InputError(
      f'{field}: the tokenizer in {folder} cannot be read ({error}); allowed: '
      'a directory with tokenizer.json or what its kind needs'
    ) from error
  return Loaded(model, params, tokenizer, folder)


def _config(
  field: str, name: str, kind: str, folder: pathlib.Path, transformers: Any
) -> Any:
  """The model's configuration.

  Raises:
    InputError: if it asks for something that its Flax class does not do.
  """
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

  # transformers 5 keeps here what 4 keeps at the top level.
  newer = raw.get('rope_parameters') or {}
  for key, allowed in _IGNORED.items():
    value = newer.get(key, getattr(settings, key, allowed))
    if value != allowed:
      raise InputError(
        f'{field}: {name!r} has {key} {value!r} in its config.json, which '
        f"transformers' Flax classes ignore; allowed: {allowed!r}"
      )

  # Without this, a token of Flax Mistral sees nothing but itself.
  if settings.model_type == 'mistral' and not settings.sliding_window:
    settings.sliding_window = settings.max_position_embeddings
  return settings


def _model_class(field: str, name: str, settings: Any, kind: str) -> Any:
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
  if settings.model_type in _NOT_TEXT or type(settings) not in mapping:
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


def restore_clip(module: Any) -> None:
  """Makes a module's `jnp.clip` take the argument `a_max` again.

  Flax T5 of transformers uses it, and jax.numpy no longer has it.

  Args:
    module: of transformers; left alone if it does not import jax.numpy.
  """
  if 'a_max' in inspect.signature(jnp.clip).parameters or (
    getattr(module, 'jnp', None) is not jnp
  ):
    return

  class Numpy:
    """jax.numpy with the `clip` of old."""

    def __getattr__(self, name: str) -> Any:
      return getattr(jnp, name)

    @staticmethod
    def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Any:
      """Keeps `x` within bounds."""
      return jnp.clip(x, a_min, a_max)

  module.jnp = Numpy()
