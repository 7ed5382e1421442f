"""Several processes, one program: start, agreement, and a lost partner.

JAX's runtime joins the processes; every one runs the same program on the
shards of its own devices. Process 0 alone writes reports (progress.py).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import sys
import threading
import time
from typing import Any
import uuid

import jax
from jax.experimental import multihost_utils
import numpy as np

from dynllm_jax import checks
from dynllm_jax.types import InputError

# Of an explicit start; JAX itself reads the first alone.
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_HEARTBEAT_SECONDS = 100  # without a sign of life a process counts as lost


def start(timeout_s: float, multihost: bool = False) -> None:
  """Joins the processes that the environment names, before JAX has devices.

  In this order: the three variables of `VARIABLES`; Slurm (`SLURM_NTASKS`
  above 1); Cloud TPU (`TPU_WORKER_HOSTNAMES` with several hosts). Without any
  of them, and without `multihost`, there is this process alone.

  Args:
    timeout_s: how long to wait for the others.
    multihost: ask JAX to find the others by itself, as on a Cloud TPU VM,
      whose metadata server knows them.

  Raises:
    InputError: if a variable is missing or wrong, or the others do not come.
  """
  if not timeout_s >= 1:
    raise checks.not_allowed(
      'config.mesh.start_timeout_s', timeout_s, '1 or more'
    )
  given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
  arguments = {}
  if given:
    arguments = _explicit(given)
    where = arguments['coordinator_address']
  elif int(os.environ.get('SLURM_NTASKS') or 1) > 1:
    where = 'the first node of the Slurm step'
  elif multihost or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
    where = 'the first host of the slice'
  else:
    return
  # JAX ends a process that waits too long with a dump of its stack, a minute
  # after its own limit: ours comes first.
  watch = threading.Timer(timeout_s, _too_late, [where, timeout_s])
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(timeout_s) + 60,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  # Whatever JAX, its cluster detection and the network raise:
  except Exception as error:
    raise InputError(
      f'the processes cannot meet at {where} ({_first_line(error)}); '
      f'allowed: every process started, with one coordinator (see '
      f'{VARIABLES[0]})'
    ) from error
  finally:
    watch.cancel()


def _too_late(where, timeout_s):
  print(
    f'error: the processes did not meet at {where} within '
    f'config.mesh.start_timeout_s = {timeout_s:g} s; allowed: every process '
    'started, with one coordinator, or a longer time',
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)


def _explicit(given):
  """The arguments of an explicit start."""
  for name in VARIABLES:
    if name not in given:
      raise InputError(
        f'{name} is not set, but {", ".join(given)} is; allowed: all of '
        f'{", ".join(VARIABLES)}, or none'
      )
  address, count, index = (given[name] for name in VARIABLES)
  if not address.rpartition(':')[2].isdigit():
    raise checks.not_allowed(VARIABLES[0], address, 'HOST:PORT of process 0')
  for name, value in zip(VARIABLES[1:], (count, index)):
    if not value.isdigit():
      raise checks.not_allowed(name, value, 'a whole number')
  if not int(index) < int(count):
    raise checks.not_allowed(
      VARIABLES[2], int(index), f'0 to {VARIABLES[1]} - 1 = {int(count) - 1}'
    )
  # No detection: an explicit start is what it says, also within Slurm.
  return {
    'coordinator_address': address,
    'num_processes': int(count),
    'process_id': int(index),
    'cluster_detection_method': 'deactivate',
  }


def several() -> bool:
  """Whether there are other processes; asks no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def agree(what: str, values: Mapping[str, Any]) -> None:
  """Stops all processes where one of them has another value.

  Args:
    what: of which the values are, for the error.
    values: JSON values by name.

  Raises:
    InputError: in every process, naming the first value that differs.
  """
  if not several():
    return
  names = sorted(values)
  texts = [json.dumps(values[name], sort_keys=True) for name in names]
  # Fixed shapes first: processes of unlike fields still meet.
  if not _differing([_digest(names)]).any():
    if not _differing([_digest(texts)]).any():
      return
    differs = _differing([_digest(text) for text in texts])
    name, text = next((n, t) for n, t, d in zip(names, texts, differs) if d)
    raise InputError(
      f'{name}: {text} in process {jax.process_index()} is not what every '
      f'process has; allowed: the same {what} in all '
      f'{jax.process_count()} processes'
    )
  raise InputError(
    f'{what}: the processes have different fields; allowed: the same '
    f'{what} in all {jax.process_count()} processes'
  )


def _digest(value):
  content = json.dumps(value).encode()
  return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _differing(digests):
  """bool[values], which are not the same in every process."""
  every = multihost_utils.process_allgather(np.stack(digests))
  every = np.asarray(every).reshape(-1, len(digests), digests[0].size)
  return (every != every[0]).any(axis=(0, 2))


def check_shared(path: pathlib.Path) -> None:
  """Stops where a folder is not one that all processes see.

  Raises:
    InputError: in every process.
  """
  if not several():
    return
  mark = uuid.uuid4().int % 2**31
  mark = int(multihost_utils.broadcast_one_to_all(np.int32(mark)))
  file = path / f'.shared-{mark}'
  if jax.process_index() == 0:
    path.mkdir(parents=True, exist_ok=True)
    file.touch()
  multihost_utils.sync_global_devices('a mark in the run folder')
  seen = multihost_utils.process_allgather(np.array(file.exists()))
  if jax.process_index() == 0:
    file.unlink()
  if not np.all(seen):
    blind = int(np.argmin(np.ravel(seen)))
    raise InputError(
      f'--workdir: {str(path)!r} of process 0 is not seen by process '
      f'{blind}; allowed: a folder that all processes share'
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Within it an error ends a process among several at once, in one line.

  An orderly end would wait for the others, who may be waiting for this one.
  The exit status is 2 for bad input, 3 where the runtime failed.
  """
  try:
    yield
  except (InputError, OSError) as error:
    if not several():
      raise
    _end(error, 2)
  except jax.errors.JaxRuntimeError as error:
    if not several():
      raise
    _end(
      'the runtime failed, most likely since another process ended or was '
      f'lost ({_first_line(error)}); the checkpoints stand: start all '
      'processes again with the same command',
      3,
    )


def _end(error, status):
  who = f'process {jax.process_index()} of {jax.process_count()}'
  print(f'error: {who}: {_first_line(error)}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  if jax.process_index() == 0:
    time.sleep(2)  # it is the coordinator: let the others say theirs
  os._exit(status)


def _first_line(error):
  return ' '.join(str(error).split())[:500] or type(error).__name__
