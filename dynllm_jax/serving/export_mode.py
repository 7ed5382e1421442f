"""`--mode=export`: a trained model for other programs.

    item_vectors.npy, item_ids.npy   a row an item, for a vector database
    items.parquet                    item, title, vector
    user_ids.npy                     a row a user
    user_tower.stablehlo             users at a time -> vectors
    item_tower.stablehlo             items at a time -> vectors
    state.npz                        the arrays that the towers read
    parameters.safetensors           all parameters, by name
    export.json                      what it is, and what a tower takes
    load_export.py                   an example that imports JAX alone

The dot product of a user's vector with an item's is the network's term of the
score (SPEC 3.9) and, where the system has one, the text term. Terms that are no
dot product (copy, walk, item scores) are named in `export.json`.
"""

import importlib.util
import io
import json
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save as to_safetensors

from dynllm_jax.live.answers import Frozen
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.progress import say
from dynllm_jax.runs.command_line import Command
from dynllm_jax.serving import opening
from dynllm_jax.storage.atomic import replacing
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import Array
from dynllm_jax.types import InputError

BATCH = 64  # rows that a tower takes
PLATFORMS = ('cpu', 'cuda', 'tpu')
_VERSION = 1
_EXAMPLE = pathlib.Path(__file__).with_name('load_export.py')


class Towers(NamedTuple):
  """Both towers, and what they read.

  Attributes:
    users, items: of StableHLO, serialized: `(arrays, i32[64] rows, i32[]
      seconds) -> f32[64, dim]`.
    arrays: of the state, those that a tower reads, by name.
    user_arrays, item_arrays: names of those that each takes, in order.
  """

  users: bytes
  items: bytes
  arrays: dict[str, np.ndarray]
  user_arrays: list[str]
  item_arrays: list[str]


def run(command: Command) -> None:
  """Runs the mode.

  Args:
    command: the command line.

  Raises:
    InputError: for whatever is wrong with the run folder or the output.
  """
  folder = pathlib.Path(
    command.output or pathlib.Path(command.workdir) / 'export'
  )
  with opening.opened(command, writes=False) as recommender:
    try:
      write(recommender, folder)
    except OSError as error:
      raise InputError(
        f'--output: {str(folder)!r} cannot be written ({error}); allowed: a '
        'folder that can be, on a disk with room'
      ) from error
  say(f'wrote {folder}')


def write(recommender: Recommender, folder: pathlib.Path) -> None:
  """Writes all files; each is whole, or as it was before.

  Args:
    recommender: the model; users and items are as they are after its newest
      event.
    folder: made if it is missing.

  Raises:
    InputError: if the system has no vectors, or a library is missing.
    OSError: if a file cannot be written.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise InputError(
      '--mode=export: flatbuffers is not installed, which JAX writes programs '
      "with; allowed: pip install 'dynllm_jax[export]'"
    )
  frozen = recommender.frozen()
  towers = make_towers(frozen)
  vectors = item_vectors(frozen, towers)
  if not np.any(vectors):
    raise InputError(
      f'--mode=export: {recommender.name} counts, and has no vectors; allowed: '
      'a system that learns some'
    )

  items = np.array(recommender.items, str)
  _write_array(folder / 'item_vectors.npy', vectors)
  _write_array(folder / 'item_ids.npy', items)
  _write_array(folder / 'user_ids.npy', np.array(recommender.users, str))
  table = pa.table(
    {
      'item': pa.array(items.tolist(), pa.string()),
      'title': pa.array(list(recommender.titles), pa.string()),
      'vector': pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), vectors.shape[1]
      ),
    }
  )
  with replacing(folder / 'items.parquet') as file:
    pq.write_table(table, file)

  write_atomically(folder / 'user_tower.stablehlo', towers.users)
  write_atomically(folder / 'item_tower.stablehlo', towers.items)
  with replacing(folder / 'state.npz') as file:
    np.savez(file, allow_pickle=False, **towers.arrays)
  write_atomically(
    folder / 'parameters.safetensors',
    to_safetensors(_named(frozen.bound.params)),
  )
  about = _about(recommender, frozen, towers, vectors.shape[1])
  write_atomically(folder / 'export.json', json.dumps(about, indent=2))
  write_atomically(
    folder / 'load_export.py', _EXAMPLE.read_text(encoding='utf-8')
  )


def make_towers(frozen: Frozen) -> Towers:
  """Both towers as StableHLO, for every kind of device.

  Args:
    frozen: the system and its state.
  """
  leaves, treedef = jax.tree.flatten((frozen.bound, frozen.memory))
  nobody = jnp.zeros([1], jnp.int32)

  def users(arrays: list[Array], rows: Array, seconds: Array) -> Array:
    bound, memory = jax.tree.unflatten(treedef, arrays)
    times = jnp.zeros_like(rows) + seconds
    found, _ = bound.embed(memory, rows, times, nobody + 1, seconds)
    vector = found.vector
    scaled = vector if found.scale is None else found.scale * vector
    return _joined(scaled, found.text)

  def items(arrays: list[Array], rows: Array, seconds: Array) -> Array:
    bound, memory = jax.tree.unflatten(treedef, arrays)
    _, found = bound.embed(memory, nobody, nobody + seconds, rows, seconds)
    return _joined(found.vector, found.text)

  names = [f'array{number:03}' for number in range(len(leaves))]
  kept: list[list[str]] = []
  programs = []
  for tower in (users, items):
    program, used = _exported(tower, leaves)
    programs.append(program)
    kept.append([names[number] for number in used])
  return Towers(
    users=programs[0],
    items=programs[1],
    arrays={
      name: np.asarray(leaf)
      for name, leaf in zip(names, leaves)
      if name in kept[0] or name in kept[1]
    },
    user_arrays=kept[0],
    item_arrays=kept[1],
  )


def item_vectors(frozen: Frozen, towers: Towers) -> np.ndarray:
  """f32[items, dim] vectors of all items, by the exported tower itself."""
  program = jax.export.deserialize(bytearray(towers.items))
  arrays = [jnp.asarray(towers.arrays[name]) for name in towers.item_arrays]
  call = jax.jit(program.call)
  blocks = []
  for first in range(1, frozen.num_items + 1, BATCH):
    rows = np.arange(first, first + BATCH)
    rows = np.where(rows <= frozen.num_items, rows, 0).astype(np.int32)
    blocks.append(np.asarray(call(arrays, rows, np.int32(frozen.seconds))))
  return np.concatenate(blocks)[: frozen.num_items]


def _exported(tower: Any, leaves: list[Array]) -> tuple[bytes, list[int]]:
  """A tower, serialized, which takes those arrays alone that it reads."""
  shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
  rows = jax.ShapeDtypeStruct([BATCH], jnp.int32)
  seconds = jax.ShapeDtypeStruct([], jnp.int32)
  whole = jax.export.export(jax.jit(tower), platforms=PLATFORMS)(
    shapes, rows, seconds
  )
  used = [n for n in whole.module_kept_var_idx if n < len(leaves)]

  def with_used(arrays: list[Array], rows: Array, seconds: Array) -> Array:
    every: list[Any] = [jnp.zeros(one.shape, one.dtype) for one in shapes]
    for number, array in zip(used, arrays, strict=True):
      every[number] = array
    return tower(every, rows, seconds)

  program = jax.export.export(jax.jit(with_used), platforms=PLATFORMS)(
    [shapes[number] for number in used], rows, seconds
  )
  return bytes(program.serialize()), used


def _joined(vector: Array, text: Array | None) -> Array:
  """One vector, whose dot product is the sum of both terms'."""
  parts = [vector] if text is None else [vector, text]
  return jnp.concatenate(parts, axis=1).astype(jnp.float32)


def _named(params: Any) -> dict[str, np.ndarray]:
  """Parameters by name, as `layers/0/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(
      leaf, order='C'
    )
    for path, leaf in leaves
  }


def _about(
  recommender: Recommender, frozen: Frozen, towers: Towers, dim: int
) -> dict[str, Any]:
  """The content of `export.json`."""
  users, _ = jax.eval_shape(
    lambda bound, memory, rows: bound.embed(memory, rows, rows, rows, rows[0]),
    frozen.bound,
    frozen.memory,
    jax.ShapeDtypeStruct([1], jnp.int32),
  )
  others = ('copy', 'walk', 'item_scores')
  return {
    'version': _VERSION,
    'system': recommender.name,
    'dim': dim,
    'batch': BATCH,
    'start_time': frozen.start,
    'newest_time': recommender.newest_time,
    'terms_left_out': [n for n in others if getattr(users, n) is not None],
    'user_arrays': towers.user_arrays,
    'item_arrays': towers.item_arrays,
  }


def _write_array(path: pathlib.Path, array: np.ndarray) -> None:
  content = io.BytesIO()
  np.save(content, array, allow_pickle=False)
  write_atomically(path, content.getvalue())
