"""Orbax checkpoints: the latest epoch, and the best one.

Each has a manager of its own, because one manager that keeps the best evicts
the newest. A step holds the whole TrainState as it stood at the end of an
epoch, and a JSON record of the run (status.py). Orbax writes a step into a
temporary folder and renames it, so a step that is there is complete. Checksums
of the arrays and of the record tell whether it still is what was saved.
"""

from collections.abc import Callable
import contextlib
import json
from typing import Any
import zlib

from absl import logging as absl_logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from dynllm_jax.engine import train
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.storage import bucket
from dynllm_jax.storage import plain_path
from dynllm_jax.storage.store import digest
from dynllm_jax.types import InputError
from dynllm_jax.types import TrainState

KINDS = ('latest', 'best')


class Checkpoints:
  """The checkpoints of one run folder; a context manager.

  Args:
    folder: the run folder. It may lie in a bucket, where nothing can be
      renamed: there Orbax marks a step that is complete.
  """

  def __init__(self, folder: bucket.Path) -> None:
    self._stack = contextlib.ExitStack()
    if not bucket.is_url(folder):
      folder = folder.resolve()
    self._places = {kind: folder / 'checkpoints' / kind for kind in KINDS}
    if not bucket.is_url(folder):
      folder = plain_path.plain(folder, self._stack)
    # Orbax would report every save.
    absl_logging.set_verbosity(absl_logging.ERROR)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1, enable_async_checkpointing=False
    )
    self._managers = {
      kind: ocp.CheckpointManager(
        folder / 'checkpoints' / kind,
        options=options,
        item_handlers={
          'state': ocp.StandardCheckpointHandler(),
          'status': ocp.JsonCheckpointHandler(),
        },
      )
      for kind in KINDS
    }

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error: object) -> None:
    for manager in self._managers.values():
      with contextlib.suppress(Exception):
        manager.close()
    self._stack.close()

  def epoch(self, kind: str) -> int | None:
    """The number of the epoch that is stored; None if there is none."""
    return self._managers[kind].latest_step()

  def save(
    self, kind: str, epoch: int, state: TrainState, status: dict[str, Any]
  ) -> None:
    """Stores an epoch; the one before is removed once this one is complete.

    Args:
      kind: 'latest' or 'best'.
      epoch: number of finished epochs.
      state: the training state.
      status: JSON values.

    Raises:
      InputError: if it cannot be written; what was stored before stays.
    """
    manager = self._managers[kind]
    # A run whose latest checkpoint was removed starts anew, and Orbax would
    # skip an epoch that is not later than what is there.
    for step in manager.all_steps():
      if step >= epoch:
        manager.delete(step)

    state = _with_raw_key(state)
    record = {
      'status': status,
      'sum': _json_checksum(status),
      'arrays': _array_checksums(state),
    }
    try:
      manager.save(
        epoch,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          status=ocp.args.JsonSave(record),
        ),
      )
    # tensorstore reports a full disk as a ValueError.
    except (OSError, ValueError) as error:
      raise InputError(
        f'{self._places[kind]}: the checkpoint cannot be written '
        f'({_first_line(error)}); allowed: a folder with room that can be '
        'written'
      ) from error

  def status(self, kind: str) -> dict[str, Any]:
    """The JSON record of a stored epoch.

    Raises:
      InputError: if there is no epoch, or its record cannot be read.
    """
    return self._read(kind, _record)['status']

  def name(self, kind: str) -> str:
    """Names what is stored: a digest of its record and its arrays' checksums.

    Raises:
      InputError: if there is no epoch, or its record cannot be read.
    """
    return digest(self._read(kind, _record)).hex()

  def restore(self, kind: str, template: TrainState) -> TrainState:
    """Reads a stored epoch into the shape and placement of a template.

    Args:
      kind: 'latest' or 'best'.
      template: a state of the same configuration, or its
        `jax.ShapeDtypeStruct`s.

    Returns:
      The state as it was saved.

    Raises:
      InputError: if what is stored has other arrays, or cannot be read.
    """
    wanted = jax.tree.map(
      lambda shape, x: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=x.sharding
      ),
      jax.eval_shape(_with_raw_key, template),
      template,
    )

    def read(manager: ocp.CheckpointManager, epoch: int) -> TrainState:
      # The manager is not asked: in a bucket, in every process but process 0,
      # it thinks that a step which it has saved itself is unfinished.
      stored = ocp.StandardCheckpointHandler().metadata(
        manager.directory / str(epoch) / 'state'
      )
      _check_shapes(stored.tree, wanted)

      # Orbax compares structures, and a field that is None is part of one:
      # it is asked for the structure that it has itself.
      leaves = jax.tree_util.tree_leaves_with_path(wanted)
      by_name = {_name(path): leaf for path, leaf in leaves}
      found = manager.restore(
        epoch,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(
            jax.tree_util.tree_map_with_path(
              lambda path, _: by_name[_name(path)], stored.tree
            ),
            strict=False,
          )
        ),
      )['state']
      by_name = {
        _name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
      }
      state = jax.tree.unflatten(
        jax.tree.structure(wanted), [by_name[_name(path)] for path, _ in leaves]
      )

      saved = _record(manager, epoch)['arrays']
      for name, found in _array_checksums(state).items():
        # Another mesh pads tables to another shape; those are not compared.
        old = saved.get(name, {})
        if old.get('shape') == found['shape'] and old != found:
          raise ValueError(f'{name} is not as it was saved')
      return state

    state = self._read(kind, read)
    return state.replace(
      key=jax.random.wrap_key_data(state.key, impl=train.GENERATOR)
    )

  def arrays(self, kind: str) -> dict[str, np.ndarray]:
    """The arrays of a stored epoch, whatever its shapes, on the host.

    Args:
      kind: 'latest' or 'best'.

    Returns:
      Arrays by full name, such as `params.network.kernel`.

    Raises:
      InputError: if there is no epoch, or it cannot be read.
    """

    def read(
      manager: ocp.CheckpointManager, epoch: int
    ) -> dict[str, np.ndarray]:
      folder = manager.directory / str(epoch) / 'state'
      handler = ocp.PyTreeCheckpointHandler()
      on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata(folder).tree,
      )
      tree = handler.restore(
        folder, args=ocp.args.PyTreeRestore(restore_args=on_host)
      )
      found = _array_checksums(tree)
      for name, saved in _record(manager, epoch)['arrays'].items():
        if found.get(name) != saved:
          raise ValueError(f'{name} is not as it was saved')
      return {
        _name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
      }

    return self._read(kind, read)

  def _read(
    self, kind: str, read: Callable[[ocp.CheckpointManager, int], Any]
  ) -> Any:
    """What `read(manager, epoch)` returns for the epoch that is stored.

    Raises:
      InputError: if there is no epoch, or whatever `read` raises.
    """
    manager, epoch = self._managers[kind], self.epoch(kind)
    if epoch is None:
      raise InputError(
        f'{self._places[kind]}: there is no checkpoint; allowed: the folder of '
        'a run whose checkpoints are both there, latest and best'
      )
    try:
      return read(manager, epoch)
    # Orbax raises a bare Exception for an array that is cut short.
    except Exception as error:
      raise InputError(
        f'{self._places[kind] / str(epoch)}: the checkpoint cannot '
        f'be restored ({_first_line(error)}); allowed: an undamaged one of '
        'the same configuration'
      ) from error


def _record(manager: ocp.CheckpointManager, epoch: int) -> dict[str, Any]:
  """The JSON record of a step: `status`, and checksums.

  Raises:
    ValueError: if the record is not what was saved.
  """
  record = manager.restore(
    epoch, args=ocp.args.Composite(status=ocp.args.JsonRestore())
  )['status']
  if record['sum'] != _json_checksum(record['status']):
    raise ValueError('the record is not as it was saved')
  return record


def _json_checksum(value: Any) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _array_checksums(state: Any) -> dict[str, dict[str, Any]]:
  """Shape and checksum of each array that this process has as a whole."""
  return {
    _name(path): {
      'shape': list(leaf.shape),
      'sum': zlib.crc32(np.ascontiguousarray(leaf).ravel().view('u1').data),
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if getattr(leaf, 'is_fully_addressable', True)
  }


def _first_line(error: BaseException) -> str:
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_shapes(stored: Any, wanted: TrainState) -> None:
  """Compares the arrays of a checkpoint with those that are wanted.

  The number of rows of a sharded table may differ, since each mesh pads it to
  its own number of devices. Orbax cuts such rows or fills them with zeros, and
  nothing reads them.

  Raises:
    ValueError: naming an array that is missing, superfluous, or of another
      shape.
  """
  old = {
    _name(path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(stored)
  }
  specs = jax.tree.leaves(
    device_mesh.partition_specs(wanted, 1),
    is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
  )
  in_blocks = jax.sharding.PartitionSpec(sharded_table.NODES)
  new = jax.tree_util.tree_leaves_with_path(wanted)
  for (path, leaf), spec in zip(new, specs):
    name = _name(path)
    compared_from = int(spec == in_blocks)
    if old.get(name, ())[compared_from:] != leaf.shape[compared_from:]:
      raise ValueError(f'{name} is {leaf.shape} here, {old.get(name)} there')
  if less := {_name(path) for path, _ in new} - old.keys():
    raise ValueError(f'{min(less)} is not there')
  more = old.keys() - {_name(path) for path, _ in new}
  if more:
    raise ValueError(f'{min(more)} is not here')


def _name(path: jax.tree_util.KeyPath) -> str:
  """An array's full name, such as `params.network.kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _with_raw_key(state: TrainState) -> TrainState:
  """The state with its random key as integers, which Orbax can store."""
  return state.replace(key=jax.random.key_data(state.key))
