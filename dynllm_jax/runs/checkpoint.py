"""Orbax checkpoints: the latest epoch, and the best one.

Two managers, because one that keeps the best evicts the newest. Each step
holds the whole TrainState as it stood at the end of an epoch, and `status`, a
JSON record: configuration, stopping state, history. Orbax writes a step into
a temporary folder and renames it, so a step that is there is complete. Check
sums of the arrays and of the record tell whether it still is what was saved.
"""

import contextlib
import json
from typing import Any
import zlib

from absl import logging as absl_logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from dynllm_jax.parallel import device_mesh
from dynllm_jax.storage import bucket
from dynllm_jax.types import InputError
from dynllm_jax.types import TrainState

KINDS = ('latest', 'best')


class Checkpoints:
  """The checkpoints of one run folder; a context manager.

  Args:
    folder: the run folder, also in a bucket: there Orbax ends a step with a
      marker, and a step without it is none.
  """

  def __init__(self, folder: bucket.Path):
    if not bucket.is_url(folder):
      folder = folder.resolve()
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells every save
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

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for manager in self._managers.values():
      with contextlib.suppress(Exception):
        manager.close()

  def epoch(self, kind: str) -> int | None:
    """The epoch that is stored, None without one."""
    return self._managers[kind].latest_step()

  def save(
    self, kind: str, epoch: int, state: TrainState, status: dict[str, Any]
  ) -> None:
    """Stores an epoch; the one stored before goes once this one is complete.

    Args:
      kind: 'latest' or 'best'.
      epoch: number of finished epochs.
      state: the training state.
      status: JSON values.

    Raises:
      InputError: if it cannot be written; what was stored before stays.
    """
    manager = self._managers[kind]
    # A run whose latest checkpoint was removed starts anew. Orbax would leave
    # out an epoch that is not later than what is there.
    for step in manager.all_steps():
      if step >= epoch:
        manager.delete(step)
    state = _plain(state)
    try:
      manager.save(
        epoch,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          status=ocp.args.JsonSave(
            {
              'status': status,
              'sum': _sum_of_json(status),
              'arrays': _sums(state),
            }
          ),
        ),
      )
    # A full disk is a ValueError of tensorstore's.
    except (OSError, ValueError) as error:
      raise InputError(
        f'{manager.directory}: the checkpoint cannot be written '
        f'({_first_line(error)}); allowed: a folder with room that can be '
        'written'
      ) from error

  def status(self, kind: str) -> dict[str, Any]:
    """The JSON record of a stored epoch.

    Raises:
      InputError: if there is no epoch, or its record cannot be read.
    """
    return self._read(kind, _record)['status']

  def restore(self, kind: str, template: TrainState) -> TrainState:
    """Reads a stored epoch into the shape and placement of a template.

    Args:
      kind: 'latest' or 'best'.
      template: a state of the same configuration.

    Returns:
      The state as it was saved.

    Raises:
      InputError: if what is stored has other arrays, or cannot be read.
    """
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(template))

    def read(manager, epoch):
      # Not the manager's: where it has saved into a bucket, as any process but
      # the first, it would take the step for unfinished.
      stored = ocp.StandardCheckpointHandler().metadata(
        manager.directory / str(epoch) / 'state'
      )
      _check_shapes(stored.tree, wanted)
      state = manager.restore(
        epoch,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(wanted, strict=False)
        ),
      )['state']
      saved = _record(manager, epoch)['arrays']
      for name, found in _sums(state).items():
        # A mesh that pads tables otherwise has arrays of another shape.
        old = saved.get(name, {})
        if old.get('shape') == found['shape'] and old != found:
          raise ValueError(f'{name} is not as it was saved')
      return state

    state = self._read(kind, read)
    return state.replace(key=jax.random.wrap_key_data(state.key))

  def _read(self, kind, read):
    """What `read(manager, epoch)` finds in a stored epoch."""
    manager = self._managers[kind]
    if self.epoch(kind) is None:
      raise InputError(
        f'{manager.directory}: there is no checkpoint; allowed: the folder of '
        'a run whose checkpoints are both there, latest and best'
      )
    try:
      return read(manager, self.epoch(kind))
    # Orbax raises a bare Exception for an array that is cut short.
    except Exception as error:
      raise InputError(
        f'{manager.directory / str(self.epoch(kind))}: the checkpoint cannot '
        f'be restored ({_first_line(error)}); allowed: an undamaged one of '
        'the same configuration'
      ) from error


def _record(manager, epoch):
  """The JSON record of a step: `status`, and check sums."""
  record = manager.restore(
    epoch, args=ocp.args.Composite(status=ocp.args.JsonRestore())
  )['status']
  if record['sum'] != _sum_of_json(record['status']):
    raise ValueError('the record is not as it was saved')
  return record


def _sum_of_json(value):
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _sums(state):
  """Shape and check sum of each array that this process has as a whole."""
  return {
    _name(path): {
      'shape': list(leaf.shape),
      'sum': zlib.crc32(np.ascontiguousarray(leaf).ravel().view('u1')),
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if leaf.is_fully_addressable
  }


def _first_line(error):
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_shapes(stored, wanted):
  """Raises ValueError where an array has another shape.

  Rows that a mesh adds to shared tables, or has no need of, are cut or filled
  with zeros by Orbax: nothing reads them.
  """
  old = {
    _name(path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(stored)
  }
  specs = jax.tree.leaves(
    device_mesh.partition_specs(wanted),
    is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
  )
  new = jax.tree_util.tree_leaves_with_path(wanted)
  for (path, leaf), spec in zip(new, specs):
    name, first = _name(path), len(spec)  # 1 where rows are shared, else 0
    if old.get(name, ())[first:] != leaf.shape[first:]:
      raise ValueError(f'{name} is {leaf.shape} here, {old.get(name)} there')
  more = old.keys() - {_name(path) for path, _ in new}
  if more:
    raise ValueError(f'{min(more)} is not here')


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _plain(state: TrainState) -> TrainState:
  """The state with its key as ordinary integers."""
  return state.replace(key=jax.random.key_data(state.key))
