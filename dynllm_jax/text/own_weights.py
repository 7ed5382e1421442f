"""Weights of the models in this package, read straight to where they belong.

A model's parameters have the names of the weights in Hugging Face's files, so
that there is no table of names. Each device reads its own part of a weight and
no more: a model may be larger than the memory of any of them.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.text import int8
from dynllm_jax.text import model_files
from dynllm_jax.types import InputError

Path = tuple[str, ...]
# Where in a mesh a parameter is: of its path the parts of its axes.
Rules = Callable[[Path], PartitionSpec]

# What a head or a pooler that is not used, and buffers, are called.
_LEFT_OVER = (
  'lm_head',
  'pooler',
  'cls.',
  'head.',
  'classifier',
  'decoder.',
  'vocab_',
  'position_ids',
  'rotary_emb',
  'masked_bias',
)


def read(
  folder: pathlib.Path,
  shapes: Any,
  name: Callable[[Path], str],
  mesh: Mesh,
  rules: Rules,
  dtype: Any,
) -> Any:
  """Reads the weights of a model from safetensors.

  Args:
    folder: where its files are.
    shapes: its parameters, a tree of anything with `shape` and `dtype`. What
      is int8 there is rounded to multiples of its output channel's scale, the
      parameter beside it whose name ends in `_scale`.
    name: of a parameter's path the weight's name in the files; a prefix that
      all names in the files share may be left out.
    mesh: the devices.
    rules: how a parameter is divided over them.
    dtype: the type that the other parameters get; scales are float32.

  Returns:
    The tree, of arrays on the mesh.

  Raises:
    InputError: if a weight is missing, has no place in the model or has
      another shape, or a file cannot be read.
  """
  wanted = {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  names = {path: name(path) for path in wanted}
  with contextlib.ExitStack() as stack:
    files = _open(folder, stack)
    stored = _match(folder, files, names)
    found = {
      path: _place(
        stored[path],
        path,
        leaf,
        NamedSharding(mesh, _even(mesh, rules(path), leaf.shape)),
        dtype,
      )
      for path, leaf in wanted.items()
    }

  leaves, form = jax.tree_util.tree_flatten_with_path(shapes)
  return jax.tree_util.tree_unflatten(
    form, [found[tuple(key.key for key in path)] for path, _ in leaves]
  )


def torch_name(path: Path) -> str:
  """A parameter's name in a file of torch's: `layers.0.mlp.up_proj.weight`."""
  last = 'bias' if path[-1] == 'bias' else 'weight'
  parts = [
    part.replace('layers_', 'layers.') if part.startswith('layers_') else part
    for part in path[:-1]
  ]
  return '.'.join((*parts, last))


def _even(
  mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]
) -> PartitionSpec:
  """A spec without the axes that cannot be divided evenly."""
  return PartitionSpec(
    *(
      axis if axis is None or size % mesh.shape[axis] == 0 else None
      for axis, size in zip(spec, shape)
    )
  )


class _Stored(NamedTuple):
  """Where a weight is: the open file, its path, and the weight's name there."""

  opened: Any
  file: pathlib.Path
  name: str


def _open(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, _Stored]:
  """Every stored weight by its name."""
  import safetensors

  files: dict[str, _Stored] = {}
  for file in model_files.shards(folder):
    with model_files.readable(file):
      opened = stack.enter_context(safetensors.safe_open(file, 'numpy'))
      # It is no mapping: it cannot be iterated over.
      names = opened.keys()
      for name in names:
        # The oldest files have TensorFlow's words.
        new = name.replace('.gamma', '.weight').replace('.beta', '.bias')
        files[new] = _Stored(opened, file, name)
  return files


def _match(
  folder: pathlib.Path,
  files: Mapping[str, _Stored],
  names: Mapping[Path, str],
) -> dict[Path, _Stored]:
  """Where each parameter is stored.

  Raises:
    InputError: if one is missing, or a stored weight has no place.
  """
  # A model without its head is stored without the prefix, one with a head with
  # it: `model.`, `bert.`, `language_model.model.`.
  some = next(iter(names.values()))
  prefixes = [n.removesuffix(some) for n in files if n.endswith(some)]
  prefix = min(prefixes, key=len, default='')

  stored, used = {}, set()
  for path, name in names.items():
    full = next((n for n in (prefix + name, name) if n in files), None)
    if full is None:
      raise InputError(
        f'{folder}: the weight {name} is missing from its files; allowed: a '
        'complete model'
      )
    stored[path] = files[full]
    used.add(full)

  for name in files.keys() - used:
    if not any(part in name for part in _LEFT_OVER):
      raise InputError(
        f'{files[name].file}: the weight {name} has no place in the model that '
        f'{folder / "config.json"} describes; it is of another architecture'
      )
  return stored


def _place(
  where: _Stored,
  path: Path,
  leaf: Any,
  sharding: NamedSharding,
  dtype: Any,
) -> jax.Array:
  """One parameter, on the devices."""
  opened, file, name = where
  shape = leaf.shape
  is_turned = path[-1] == 'kernel'  # torch keeps [out, in]
  is_scale = path[-1].endswith('_scale')
  is_int8 = leaf.dtype == jnp.int8
  with model_files.readable(file):
    stored = opened.get_slice(name)
    there = tuple(stored.get_shape())
    if is_scale:
      there = there[:1]
    if (there[::-1] if is_turned else there) != shape:
      raise InputError(
        f'{file}: the weight {name} is of shape {there}, not '
        f'{shape[::-1] if is_turned else shape}, as config.json has it'
      )

    # Of whole rows, whatever part of them a device gets.
    scales: Any = int8.row_scales(stored) if is_scale or is_int8 else None

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      index = index or ()
      if is_scale:
        return scales[index]
      there = index[::-1] if is_turned else index
      value = stored[there]
      if is_int8:
        value = int8.rounded(value, scales[there[0]])
      kind = value.dtype if is_int8 else jnp.dtype(dtype)
      return np.asarray(value.T if is_turned else value, kind, order='C')

    return jax.make_array_from_callback(shape, sharding, part)
