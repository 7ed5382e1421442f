"""Text encoder: any Flax model of Hugging Face transformers.

`facets.encoder.model` is a local directory or a name on the Hub. A
sentence-transformers directory says how its vectors are pooled, how long a
text may be and whether vectors are normalized; `pooling`, `max_length` and
`normalize` say otherwise. Embeddings are computed in float32 on every kind of
device, so that a store may be finished on another, and kept in half precision.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax import checks
from dynllm_jax.text import embedding_cache
from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

VERSION = 2

_FIELD = 'config.facets.encoder'
_RULES = (
  checks.one_of('pooling', ('auto', 'mean', 'cls', 'last')),
  checks.one_of('normalize', ('auto', 'yes', 'no')),
  checks.at_least('max_length', 0, " (0: the model's own)"),
  checks.at_least('batch_tokens', 0, ' (0: by the device)'),
)
# Lengths that texts are padded to: each is compiled once, so they lie closer
# together where most texts are.
_BUCKETS = (
  8,
  16,
  24,
  32,
  40,
  48,
  64,
  80,
  96,
  128,
  160,
  192,
  256,
  320,
  384,
  512,
  768,
  1024,
  1536,
  2048,
  3072,
  4096,
)
_MAX_POSITIONS = 4096
# A second's work is soon done again, and a batch takes less time than the disk.
_WAIT_SECONDS = 1.0
# Tokens of a batch: what stays in a CPU's cache, and what fills another device.
_CPU_BATCH_TOKENS = 512
_BATCH_TOKENS = 65_536


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a model's hidden states become a vector.

  Attributes:
    pooling: 'mean', 'cls' or 'last'.
    normalize: whether vectors have length 1.
    max_length: tokens that are read of a text, its special ones included.
    lower: whether the text is put in lower case first.
    prompt: what is put before each text.
  """

  pooling: str
  normalize: bool
  max_length: int
  lower: bool = False
  prompt: str = ''


def encode(
  encoder_config: Any, texts: Sequence[str], store: str = ''
) -> np.ndarray:
  """Encodes texts; the model is loaded only if one is not in the store.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder in which embeddings are kept, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if a field is not allowed, or the model cannot be had.
  """
  checks.check(_FIELD, encoder_config, _RULES)
  about = (
    identity(encoder_config, store) if store else {'encoder': 'flax'}
  )  # which asks for no model's hash
  return embedding_cache.encode(
    texts,
    lambda missing: vectors(encoder_config, missing),
    about,
    store,
    _WAIT_SECONDS,
  )


def identity(encoder_config: Any, store: str = '') -> dict[str, Any]:
  """What embeddings follow from but the text; the model is not loaded.

  Args:
    encoder_config: `config.facets.encoder`.
    store: folder in which the model's identity is noted, so that it is known
      where the model is not.

  Raises:
    InputError: if the model is neither at hand nor noted.
  """
  return {
    'encoder': 'flax',
    'version': VERSION,
    'model': model_files.identity(
      f'{_FIELD}.model', encoder_config.model, store
    ),
    **{
      name: encoder_config[name]
      for name in ('pooling', 'normalize', 'max_length')
    },
  }


def describe(encoder_config: Any) -> str:
  """The encoder in words, for reports."""
  return f'{encoder_config.model} through Flax'


def vectors(
  encoder_config: Any, texts: Sequence[str]
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
  """Embeds texts in batches of like length, the longest first.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings.

  Yields:
    Positions in `texts`, and their embeddings, f32[positions, dim].

  Raises:
    InputError: if the model cannot be had.
  """
  loaded = flax_models.load(
    f'{_FIELD}.model',
    encoder_config.model,
    'encoder',
    max_positions=_MAX_POSITIONS,
  )
  yield from runner(encoder_config, loaded)(texts)


def runner(
  encoder_config: Any, loaded: flax_models.Loaded
) -> Callable[[Sequence[str]], Iterator[tuple[np.ndarray, np.ndarray]]]:
  """A function as `vectors` of a model that is loaded; it compiles once."""
  settings = read_settings(encoder_config, loaded)
  devices = jax.local_devices()
  mesh = Mesh(np.array(devices), ('data',))
  shard = NamedSharding(mesh, PartitionSpec('data'))
  params = jax.device_put(
    jax.tree.map(lambda x: np.asarray(x, np.float32), loaded.params),
    NamedSharding(mesh, PartitionSpec()),
  )
  forward = jax.jit(_forward(loaded.model, settings))
  budget = encoder_config.batch_tokens or (
    _CPU_BATCH_TOKENS
    if devices[0].platform == 'cpu'
    else _BATCH_TOKENS * len(devices)
  )

  def run(texts):
    before = None
    for positions, ids, lengths in batches(
      _tokenize(loaded.tokenizer, texts, settings),
      budget,
      len(devices),
      settings.max_length,
      loaded.tokenizer.pad_token_id or 0,
    ):
      # The next batch is under way while the host takes the last one in.
      after = positions, forward(params, *jax.device_put((ids, lengths), shard))
      if before:
        yield before[0], np.asarray(before[1])[: len(before[0])]
      before = after
    if before:
      yield before[0], np.asarray(before[1])[: len(before[0])]

  return run


def batches(
  tokens: Sequence[Sequence[int]],
  budget: int,
  multiple: int,
  longest: int,
  pad: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Cuts texts, sorted by length, into batches of few shapes.

  The shape in which a text is embedded follows from its own length, not from
  the texts beside it: what a resumed run embeds is what an unbroken one would.

  Args:
    tokens: of each text.
    budget: tokens of a batch, padding included.
    multiple: number that the rows of a batch are a multiple of.
    longest: the most tokens a text may have.
    pad: the id that fills rows up.

  Yields:
    Positions in `tokens`; ids, i32[rows, length], and numbers of tokens,
    i32[rows], of which the last rows may be padding of one token.
  """
  sizes = np.array([len(row) for row in tokens], np.int64)
  order = np.argsort(-sizes, kind='stable')
  buckets = np.array([b for b in _BUCKETS if b < longest] + [longest])
  padded = buckets[np.searchsorted(buckets, sizes[order])]
  start = 0
  while start < len(order):
    length = int(padded[start])
    rows = max(budget // length // multiple, 1) * multiple
    same = np.count_nonzero(padded[start : start + rows] == length)
    positions = order[start : start + same]
    ids = np.full((rows, length), pad, np.int32)
    lengths = np.ones(rows, np.int32)
    for row, at in enumerate(positions):
      ids[row, : sizes[at]] = tokens[at]
      lengths[row] = sizes[at]
    yield positions, ids, lengths
    start += same


def _forward(model: Any, settings: Settings) -> Callable:
  """ids i32[rows, length], lengths i32[rows] to f32[rows, dim]."""

  def run(params, ids, lengths):
    mask = jnp.arange(ids.shape[1]) < lengths[:, None]
    # Accelerators round the factors of a product unless they are told not to.
    with jax.default_matmul_precision('highest'):
      hidden = model(
        input_ids=ids, attention_mask=mask.astype(jnp.int32), params=params
      )[0]
    if settings.pooling == 'cls':
      pooled = hidden[:, 0]
    elif settings.pooling == 'last':
      pooled = jnp.take_along_axis(
        hidden, (lengths - 1)[:, None, None], axis=1
      )[:, 0]
    else:
      total = jnp.where(mask[..., None], hidden, 0).sum(axis=1)
      pooled = total / lengths[:, None]
    if settings.normalize:
      length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
      pooled = pooled / jnp.maximum(length, 1e-12)
    return pooled

  return run


def _tokenize(
  tokenizer: Any, texts: Sequence[str], settings: Settings
) -> list[list[int]]:
  texts = [settings.prompt + text for text in texts]
  if settings.lower:
    texts = [text.lower() for text in texts]
  rows = tokenizer(
    texts, truncation=True, max_length=settings.max_length, padding=False
  )['input_ids']
  # A tokenizer without special tokens makes nothing of some texts.
  return [row or [tokenizer.unk_token_id or 0] for row in rows]


# ----------------------------------------------------------------- settings


def read_settings(encoder_config: Any, loaded: flax_models.Loaded) -> Settings:
  """What the config says, else the model's directory, else what is usual.

  Without either: the mean of all tokens, normalized.

  Raises:
    InputError: if the directory asks for something that is not done here.
  """
  checks.check(_FIELD, encoder_config, _RULES)
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
    getattr(loaded.model.config, 'max_position_embeddings', 512),
    loaded.tokenizer.model_max_length,
  )
  asked = encoder_config.max_length or own.get('max_length') or model_limit
  if asked > model_limit and encoder_config.max_length:
    raise checks.not_allowed(
      f'{_FIELD}.max_length',
      asked,
      f'0 to {model_limit}, which {encoder_config.model} reads at most',
    )
  return Settings(
    pooling,
    normalize,
    min(asked, model_limit),
    own.get('lower', False),
    own.get('prompt', ''),
  )


def _sentence_transformers(folder: pathlib.Path) -> dict[str, Any]:
  """The settings of a sentence-transformers directory; {} if it is none."""
  path = folder / 'modules.json'
  modules = model_files.read_json(path)
  if modules is None:
    return {}
  parts = {
    module['type'].rpartition('.')[2]: module['path'] for module in modules
  }
  unknown = parts.keys() - {'Transformer', 'Pooling', 'Normalize'}
  if unknown or parts.get('Transformer', '') or 'Pooling' not in parts:
    raise InputError(
      f'{path}: modules {", ".join(parts)}; allowed: Transformer in the '
      'directory itself, Pooling, and Normalize or not'
    )
  own = {
    'normalize': 'Normalize' in parts,
    'pooling': _pooling(folder / parts['Pooling'] / 'config.json'),
  }
  for name in ('sentence_bert_config.json', 'sentence_roberta_config.json'):
    limits = model_files.read_json(folder / name) or {}
    own |= (
      {
        'max_length': limits.get('max_seq_length'),
        'lower': limits.get('do_lower_case', False),
      }
      if limits
      else {}
    )
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
