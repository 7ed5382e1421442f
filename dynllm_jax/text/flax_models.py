"""Language models in Flax, with their weights.

Models of this package come first (SPEC 8.1). For what they do not cover there
are the Flax classes of Hugging Face transformers, which its version 5 no longer
has.
"""

import dataclasses
import functools
import inspect
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.text import bert
from dynllm_jax.text import bert_settings
from dynllm_jax.text import decoder
from dynllm_jax.text import decoder_settings
from dynllm_jax.text import flax_weights
from dynllm_jax.text import model_files
from dynllm_jax.text import own_weights
from dynllm_jax.text.bert import Bert
from dynllm_jax.text.decoder import Decoder
from dynllm_jax.types import Array
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
    model: a `Decoder` or `Bert` of this package, or a Flax model of
      transformers, without parameters.
    params: arrays on the mesh, in the type in which the model computes.
    config: its config.json, as transformers reads it.
    tokenizer: the tokenizer of transformers.
    folder: where its files are.
    mesh: the devices.
    max_positions: tokens that a text may have; None where that is not told.
  """

  model: Any
  params: Any
  config: Any
  tokenizer: Any
  folder: pathlib.Path
  mesh: Mesh
  max_positions: int | None

  def hidden(self, params: Any, ids: Array, lengths: Array) -> jax.Array:
    """Hidden states of texts, [rows, tokens, dim], of an encoder.

    Args:
      params: the parameters.
      ids: i32[rows, tokens].
      lengths: i32[rows]; what is behind is padding.
    """
    if isinstance(self.model, Bert):
      states: Any = self.model.apply({'params': params}, ids, lengths)
      return states
    if isinstance(self.model, Decoder):
      context = decoder.whole(ids, lengths)
      return decoder.run(self.model, params, ids, context)[0]
    mask = jnp.arange(ids.shape[1]) < lengths[:, None]
    out = self.model(
      input_ids=ids, attention_mask=mask.astype(jnp.int32), params=params
    )
    return out[0]


def device_mesh(devices_per_copy: int = 1) -> Mesh:
  """The local devices, by copies of the model and parts of a copy.

  Args:
    devices_per_copy: devices that one copy is divided over; a divisor of their
      number.

  Returns:
    A mesh of the axes `data`, over which rows are divided, and `tensor`.
  """
  devices = np.array(jax.local_devices()).reshape(-1, devices_per_copy)
  return Mesh(devices, ('data', 'tensor'))


def load(
  field: str,
  name: str,
  kind: str,
  dtype: Any = jnp.float32,
  max_positions: int | None = None,
  mesh: Mesh | None = None,
  is_int8: bool = False,
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
    mesh: where its parameters go; None for a copy on each local device.
    is_int8: whether a decoder's weights are rounded to eight bits.

  Raises:
    InputError: if there is no such model, neither this package nor
      transformers has a class for it, its files do not fit, or weights of
      eight bits are asked of what is no decoder of this package.
  """
  folder = model_files.locate(field, name)
  try:
    import transformers
  except ImportError as error:
    raise model_files.no_transformers(field, error) from error
  transformers.utils.logging.set_verbosity_error()

  raw = model_files.read_json(folder / 'config.json') or {}
  config = _config(field, name, kind, folder, raw)
  mesh = mesh or device_mesh()
  positions: int | None
  try:
    is_own = _is_own(folder, config, kind)
    if is_int8 and not (
      is_own and config.model_type in decoder_settings.FAMILIES
    ):
      raise InputError(
        f'{name!r} is of the architecture {config.model_type!r}, whose weights '
        'cannot have eight bits; allowed: '
        f'{", ".join(sorted(decoder_settings.FAMILIES))} in safetensors'
      )
    if is_own:
      model = own_model(folder, raw, config, dtype, is_int8)
      positions = model.settings.max_positions
      params = own_weights.read(
        folder,
        own_shapes(model),
        functools.partial(weight_name, model),
        mesh,
        _divided(model),
        dtype,
      )
    else:
      model, params = _load_flax(
        field, name, kind, folder, config, dtype, max_positions
      )
      params = jax.device_put(
        jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params),
        NamedSharding(mesh, PartitionSpec()),
      )
      positions = getattr(config, 'max_position_embeddings', None)
  except InputError as error:
    if str(error).startswith(field):
      raise
    raise InputError(f'{field}: {error}') from error
  tokenizer = load_tokenizer(field, folder)
  return Loaded(model, params, config, tokenizer, folder, mesh, positions)


def load_tokenizer(field: str, folder: pathlib.Path) -> Any:
  """The tokenizer of transformers for a model.

  Args:
    field: the config's field, for messages.
    folder: the model's files.

  Raises:
    InputError: if it cannot be read.
  """
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(
      folder, local_files_only=True
    )
  # The parsers behind it raise errors of many classes.
  except Exception as error:
    raise InputError(
      f'{field}: the tokenizer in {folder} cannot be read ({error}); allowed: '
      'a directory with tokenizer.json or what its kind needs'
    ) from error


def _is_own(folder: pathlib.Path, config: Any, kind: str) -> bool:
  """Whether a model of this package reads these files."""
  families = {*decoder_settings.FAMILIES}
  if kind == 'encoder':
    families.update(bert_settings.FAMILIES)
  return config.model_type in families and model_files.is_torch(folder)


def own_model(
  folder: pathlib.Path,
  raw: dict[str, Any],
  config: Any,
  dtype: Any,
  is_int8: bool = False,
) -> Decoder | Bert:
  """A model of this package, without parameters.

  Args:
    folder: its files.
    raw: the content of its config.json.
    config: the same, as transformers reads it.
    dtype: the type in which it computes.
    is_int8: whether a decoder's weights have eight bits.

  Raises:
    InputError: for a field that is not understood.
  """
  place = folder / 'config.json'
  if config.model_type in bert_settings.FAMILIES:
    return Bert(bert_settings.read(place, raw, config), dtype)
  return Decoder(decoder_settings.read(place, raw, config), dtype, is_int8)


def own_shapes(model: Decoder | Bert) -> Any:
  """The shapes of a model's parameters; nothing is computed."""
  tokens, one = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
  if isinstance(model, Bert):
    run = functools.partial(model.init, jax.random.key(0), tokens, one)
  else:
    context = decoder.whole(tokens, one)
    run = functools.partial(
      model.init, jax.random.key(0), tokens, context, method='init_all'
    )
  return jax.eval_shape(run)['params']


def weight_name(model: Decoder | Bert, path: tuple[str, ...]) -> str:
  """The name of a parameter in Hugging Face's files."""
  if isinstance(model, Bert):
    return bert.weight_name(model.settings.family, path)
  return own_weights.torch_name(path)


def _divided(model: Decoder | Bert) -> own_weights.Rules:
  """How parameters are divided over devices; an encoder's are not."""
  if isinstance(model, Bert):
    return lambda path: PartitionSpec()
  return decoder.divided


def _load_flax(
  field: str,
  name: str,
  kind: str,
  folder: pathlib.Path,
  config: Any,
  dtype: Any,
  max_positions: int | None,
) -> tuple[Any, Any]:
  """A Flax model of transformers, and its parameters as they are stored."""
  _refuse_ignored(field, name, folder, config)
  if max_positions and config.model_type in _COMPUTED_POSITIONS:
    config.max_position_embeddings = min(
      config.max_position_embeddings, max(max_positions, _MIN_POSITIONS)
    )
  model_class = _model_class(field, name, config, kind)
  restore_clip(sys.modules[model_class.__module__])
  model = model_class(config, dtype=dtype, _do_init=False)
  return model, flax_weights.read_params(model, folder)


def _config(
  field: str, name: str, kind: str, folder: pathlib.Path, raw: dict[str, Any]
) -> Any:
  """The model's configuration, as transformers reads it."""
  import transformers

  try:
    return transformers.AutoConfig.from_pretrained(
      folder, local_files_only=True
    )
  # Its validation raises errors of many classes.
  except Exception as error:
    if 'model_type' in raw and isinstance(error, (KeyError, ValueError)):
      if raw['model_type'] in (
        *decoder_settings.FAMILIES,
        *bert_settings.FAMILIES,
      ):
        raise InputError(
          f'{field}: {folder / "config.json"} cannot be read ({error}); '
          'allowed: a config.json as transformers saves it'
        ) from error
      raise _no_class(field, name, raw['model_type'], kind) from error
    raise InputError(
      f'{field}: {folder / "config.json"} is missing or says no model_type; '
      'allowed: a directory as transformers saves it'
    ) from error


def _refuse_ignored(
  field: str, name: str, folder: pathlib.Path, config: Any
) -> None:
  """Refuses what a Flax class of transformers would leave out."""
  raw = model_files.read_json(folder / 'config.json') or {}
  # transformers 5 keeps here what 4 keeps at the top level.
  newer = raw.get('rope_parameters') or {}
  for key, allowed in _IGNORED.items():
    value = newer.get(key, getattr(config, key, allowed))
    if value != allowed:
      raise InputError(
        f'{field}: {name!r} has {key} {value!r} in its config.json, which '
        f"transformers' Flax classes ignore; allowed: {allowed!r}"
      )


def _model_class(field: str, name: str, settings: Any, kind: str) -> Any:
  """The Flax class for a configuration."""
  import transformers

  try:
    from transformers.models.auto import modeling_flax_auto as auto
  except ImportError as error:
    raise _no_class(field, name, settings.model_type, kind) from error

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
  """The error for an architecture that nobody has in Flax."""
  known = {*decoder_settings.FAMILIES}
  if kind == 'encoder':
    known.update(bert_settings.FAMILIES)
  try:
    from transformers.models.auto import modeling_flax_auto as auto
  except ImportError:  # transformers 5
    pass
  else:
    known |= {
      'encoder': set(auto.FLAX_MODEL_MAPPING_NAMES),
      'generator': set(auto.FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
      | set(auto.FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    }[kind]
  return InputError(
    f'{field}: {name!r} is of the architecture {model_type!r}, for which '
    f'there is no Flax {kind}; allowed: {", ".join(sorted(known - _NOT_TEXT))}'
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
