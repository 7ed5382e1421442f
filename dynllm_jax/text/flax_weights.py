"""Weights of a Flax model, read from the files of a Hugging Face model.

transformers fills a model with random numbers before it loads one, and does
not read sharded safetensors. Here weights are read and renamed one by one, and
a weight that is missing or left over is an error, not a warning.
"""

from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np

from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

Flat = dict[tuple[str, ...], Any]


def read_params(model: Any, folder: pathlib.Path) -> Any:
  """The parameters of a model.

  Args:
    model: a Flax model of transformers, without parameters.
    folder: where its files are.

  Returns:
    A pytree of numpy arrays, in the types that they are stored in.

  Raises:
    InputError: if a weight is missing, has no place in the model or has
      another shape, or a file cannot be read.
  """
  from flax import traverse_util

  wanted = traverse_util.flatten_dict(model.params_shape_tree)
  found: Flat = {}
  for key, value, file in _weights(model, folder, wanted):
    if key not in wanted:
      # A head that is not used, or a buffer, may be left over. A weight of a
      # layer that the model has, such as a bias, may not: the file is of
      # another architecture.
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
    found[key] = _unstored(model, folder, key, wanted[key], found)
  return traverse_util.unflatten_dict(found)


def _unstored(
  model: Any,
  folder: pathlib.Path,
  key: tuple[str, ...],
  shape: Any,
  found: Flat,
) -> np.ndarray:
  """The value of a weight that the files do not have.

  Raises:
    InputError: if it is not tied to a table that they have.
  """
  if 'pooler' in key:  # its output is never read
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
  """Every weight that is stored, with its path in Flax and its file."""
  prefix = model.base_model_prefix
  has_prefix = any(key[0] == prefix for key in wanted)
  for file in model_files.shards(folder):
    for key, value in _read(file, wanted, prefix):
      # The file may be of a model with a head and the model be without, or the
      # other way round.
      if key[0] == prefix and not has_prefix:
        key = key[1:]
      elif has_prefix and (prefix, *key) in wanted:
        key = (prefix, *key)
      yield key, value, file


def _read(
  file: pathlib.Path, wanted: Flat, prefix: str
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
  """The weights of a file, with their paths in Flax."""
  from flax import serialization
  from flax import traverse_util

  if file.suffix == '.msgpack':
    with model_files.readable(file):
      tree = serialization.msgpack_restore(file.read_bytes())
    # Flax stores large tables under the names of their paths.
    for key, value in traverse_util.flatten_dict(tree).items():
      yield tuple('/'.join(key).split('/')), np.asarray(value)
    return

  import safetensors
  from transformers.modeling_flax_pytorch_utils import (
    rename_key_and_reshape_tensor,
  )

  with (
    model_files.readable(file),
    safetensors.safe_open(file, 'numpy') as tensors,
  ):
    from_flax = (tensors.metadata() or {}).get('format') == 'flax'
    names = tensors.keys()  # it is no mapping: it cannot be iterated over
    for name in names:
      key, value = tuple(name.split('.')), tensors.get_tensor(name)
      if not from_flax:
        bare = key[1:] if key[0] == prefix else key
        # It is annotated for names in one string, and takes paths.
        renamed: Any = rename_key_and_reshape_tensor
        key, value = renamed(bare, value, wanted, prefix)
      yield key, value
