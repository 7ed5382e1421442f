"""Several processes that run one program: start, checks, and failures.

JAX's runtime joins the processes. Each of them runs the same program on the
shards of its own devices; only process 0 writes reports (progress.py).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import json
import math
import os
import pathlib
import sys
import threading
import time
from typing import Any
from typing import NoReturn
import uuid

import jax
from jax.experimental import multihost_utils
import numpy as np

from dynllm_jax import checks
from dynllm_jax.types import InputError

# What starts processes explicitly. JAX itself reads only the first of them.
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_HEARTBEAT_SECONDS = 100  # without a sign of life a process counts as lost


def check_timeout(timeout_s: float) -> None:
  """Checks `config.mesh.start_timeout_s`.

  Raises:
    InputError: if it is less than a second, or no number.
  """
  if not 1 <= timeout_s < math.inf:
    raise checks.not_allowed(
      'config.mesh.start_timeout_s', timeout_s, '1 or more'
    )


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
  check_timeout(timeout_s)
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

  # JAX ends a process that waits too long with a dump of its stack. Its limit
  # is a minute later, so that our one line comes first.
  watch = threading.Timer(timeout_s, _too_late, [where, timeout_s])
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(timeout_s) + 60,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  # JAX, its cluster detection and the network raise errors of many classes.
  except Exception as error:
    raise InputError(
      f'the processes cannot meet at {where} ({_one_line(error)}); '
      f'allowed: every process started, with one coordinator (see '
      f'{VARIABLES[0]})'
    ) from error
  finally:
    watch.cancel()


def _too_late(where: str, timeout_s: float) -> NoReturn:
  print(
    f'error: the processes did not meet at {where} within '
    f'config.mesh.start_timeout_s = {timeout_s:g} s; allowed: every process '
    'started, with one coordinator, or a longer time',
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)


def _explicit(given: Mapping[str, str]) -> dict[str, Any]:
  """The arguments of `jax.distributed.initialize` for an explicit start.

  Args:
    given: those of `VARIABLES` that are set, with their values.

  Raises:
    InputError: if one is missing or wrong.
  """
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
  # Without detection an explicit start is also obeyed within Slurm.
  return {
    'coordinator_address': address,
    'num_processes': int(count),
    'process_id': int(index),
    'cluster_detection_method': 'deactivate',
  }


def is_multiprocess() -> bool:
  """Whether there are other processes; does not start the devices."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def check_same(what: str, values: Mapping[str, Any]) -> None:
  """Stops all processes if one of them has a different value.

  Args:
    what: what the values belong to, for the error.
    values: JSON values by name.

  Raises:
    InputError: in every process, naming the first value that differs.
  """
  if not is_multiprocess():
    return
  names = sorted(values)
  texts = [json.dumps(values[name], sort_keys=True) for name in names]

  # The digest of all names comes first: from here on every process sends
  # arrays of the same shapes.
  if _differing([_digest(names)]).any():
    raise InputError(
      f'{what}: the processes have different fields; allowed: the same '
      f'{what} in all {jax.process_count()} processes'
    )
  if not _differing([_digest(texts)]).any():
    return

  differs = _differing([_digest(text) for text in texts])
  name, text = next((n, t) for n, t, d in zip(names, texts, differs) if d)
  raise InputError(
    f'{name}: {text} in process {jax.process_index()} is not what every '
    f'process has; allowed: the same {what} in all '
    f'{jax.process_count()} processes'
  )


def _digest(value: str | list[str]) -> np.ndarray:
  content = json.dumps(value).encode()
  return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _differing(digests: list[np.ndarray]) -> np.ndarray:
  """bool[digests]: which are not the same in every process."""
  every = multihost_utils.process_allgather(np.stack(digests))
  every = np.asarray(every).reshape(-1, len(digests), digests[0].size)
  return (every != every[0]).any(axis=(0, 2))


def check_shared_folder(path: pathlib.Path) -> None:
  """Stops if not all processes see the same folder.

  Raises:
    InputError: in every process.
  """
  if not is_multiprocess():
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
def fail_fast() -> Iterator[None]:
  """Ends this process at once, with one line, on an error within the block.

  Only where there are other processes: an orderly end would wait for them, and
  they may be waiting for this one. The exit status is 2 for bad input and 3 if
  the runtime failed.
  """
  try:
    yield
  except (InputError, OSError) as error:
    if not is_multiprocess():
      raise
    _end(error, 2)
  except jax.errors.JaxRuntimeError as error:
    if not is_multiprocess():
      raise
    _end(
      'the runtime failed, most likely since another process ended or was '
      f'lost ({_one_line(error)}); the checkpoints stand: start all '
      'processes again with the same command',
      3,
    )


def _end(error: Exception | str, status: int) -> NoReturn:
  who = f'process {jax.process_index()} of {jax.process_count()}'
  print(f'error: {who}: {_one_line(error)}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  if jax.process_index() == 0:
    time.sleep(2)  # process 0 coordinates: the others print their errors first
  os._exit(status)


def _one_line(error: Exception | str) -> str:
  """The text of an error on one line."""
  return ' '.join(str(error).split())[:500] or type(error).__name__
