"""Text encoder: a language model on this machine.

`config.facets.encoder.model` is a local directory or a name on the Hugging Face
Hub; pooling.py says how its hidden states become vectors. Embeddings are
computed in float32 on every kind of device, so that a store may be finished on
another kind, and kept in half precision.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.text import embedding_cache
from dynllm_jax.text import flax_models
from dynllm_jax.text import model_files
from dynllm_jax.text import pooling
from dynllm_jax.text import token_batches

VERSION = 2

_FIELD = 'config.facets.encoder'
_MAX_POSITIONS = 4096
# A second's work is soon repeated, and a batch takes less time than a write to
# the disk.
_WAIT_SECONDS = 1.0
# Tokens of a batch: they fit a CPU's cache, or they fill another device.
_CPU_BATCH_TOKENS = 512
_BATCH_TOKENS = 65_536


def check(encoder_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that this encoder reads.

  Raises:
    InputError: naming those whose value is not allowed.
  """
  named = checks.Rule('model', 'the directory or the name of a model', bool)
  checks.gather(
    [
      lambda: checks.check(_FIELD, encoder_config, [named]),
      lambda: pooling.check(encoder_config),
    ]
  )


def encode(
  encoder_config: ml_collections.ConfigDict,
  texts: Sequence[str],
  store: str = '',
) -> np.ndarray:
  """Encodes texts; the model is loaded only if one is not in the store.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings; an empty one gives zeros.
    store: folder in which embeddings are kept, '' for none.

  Returns:
    f16[texts, dim].

  Raises:
    InputError: if a field is not allowed, or the model cannot be loaded.
  """
  pooling.check(encoder_config)
  # Without a store there is no need to hash the model's files.
  about = identity(encoder_config, store) if store else {'encoder': 'flax'}
  return embedding_cache.encode(
    texts,
    lambda missing: vectors(encoder_config, missing),
    about,
    store,
    _WAIT_SECONDS,
  )


def identity(
  encoder_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """All that embeddings depend on except the text; the model is not loaded.

  Args:
    encoder_config: `config.facets.encoder`.
    store: folder in which the model's identity is noted, so that it is known
      on machines without the model.

  Raises:
    InputError: if the model is neither available nor noted.
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


def describe(encoder_config: ml_collections.ConfigDict) -> str:
  """The encoder in words, for reports."""
  return f'{encoder_config.model} through Flax'


def vectors(
  encoder_config: ml_collections.ConfigDict, texts: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Embeds texts in batches of like length, the longest first.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: any strings.

  Yields:
    Positions in `texts`, and their embeddings, f32[positions, dim].

  Raises:
    InputError: if the model cannot be loaded.
  """
  loaded = flax_models.load(
    f'{_FIELD}.model',
    encoder_config.model,
    'encoder',
    max_positions=_MAX_POSITIONS,
  )
  yield from runner(encoder_config, loaded)(texts)


def runner(
  encoder_config: ml_collections.ConfigDict, loaded: flax_models.Loaded
) -> Callable[[Sequence[str]], Iterator[tuple[np.ndarray, np.ndarray]]]:
  """Prepares a loaded model.

  Args:
    encoder_config: `config.facets.encoder`.
    loaded: the model.

  Returns:
    A function of texts like `vectors`; each shape compiles once.
  """
  settings = pooling.read_settings(encoder_config, loaded)

  devices = loaded.mesh.devices.ravel()
  shard = NamedSharding(loaded.mesh, PartitionSpec('data'))
  dense = [(one.kernel, one.bias) for one in settings.dense]
  params = (
    loaded.params,
    jax.device_put(dense, NamedSharding(loaded.mesh, PartitionSpec())),
  )
  forward = jax.jit(_forward(loaded, settings))
  budget = encoder_config.batch_tokens or (
    _CPU_BATCH_TOKENS
    if devices[0].platform == 'cpu'
    else _BATCH_TOKENS * len(devices)
  )

  def run(texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    batches = token_batches.token_batches(
      _tokenize(loaded.tokenizer, texts, settings),
      budget=budget,
      multiple=len(devices),
      longest=settings.max_length,
      pad=loaded.tokenizer.pad_token_id or 0,
    )
    before = None
    for positions, ids, lengths in batches:
      # The device computes this batch while the host reads the last one.
      after = positions, forward(params, *jax.device_put((ids, lengths), shard))
      if before:
        yield before[0], np.asarray(before[1])[: len(before[0])]
      before = after
    if before:
      yield before[0], np.asarray(before[1])[: len(before[0])]

  return run


def _forward(
  loaded: flax_models.Loaded, settings: pooling.PoolingSettings
) -> Callable:
  """A function of params, ids i32[rows, length] and lengths i32[rows].

  It returns the vectors, f32[rows, dim].
  """

  def run(params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    weights, dense = params
    # By default accelerators round the factors of a product.
    with jax.default_matmul_precision('highest'):
      hidden = loaded.hidden(weights, ids, lengths)
      return pooling.apply(settings, dense, hidden, lengths)

  return run


def _tokenize(
  tokenizer: Any, texts: Sequence[str], settings: pooling.PoolingSettings
) -> list[list[int]]:
  texts = [settings.prompt + text for text in texts]
  if settings.lower:
    texts = [text.lower() for text in texts]
  rows = tokenizer(
    texts, truncation=True, max_length=settings.max_length, padding=False
  )['input_ids']
  # A tokenizer without special tokens may give no token at all.
  return [row or [tokenizer.unk_token_id or 0] for row in rows]
