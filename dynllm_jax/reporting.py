"""The run folder, progress, and the printed table."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import resource
import subprocess
import tempfile
from typing import Any

import jax
import numpy as np

import dynllm_jax
from dynllm_jax import bucket
from dynllm_jax.progress import Progress, is_writer, say  # pylint: disable=unused-import
from dynllm_jax.types import InputError


class RunFolder:
  """The files that a run leaves in its folder; process 0 alone writes them.

  Args:
    path: the folder, also in a bucket; made when first written to.

  Raises:
    InputError: if it is of a place that is not supported.
  """

  def __init__(self, path: str):
    self.path = bucket.path('--workdir', path)

  def check(self) -> None:
    """Stops, before work is spent, where the folder cannot be written.

    Raises:
      InputError: if the folder cannot be made or written in.
    """
    if bucket.is_url(self.path):
      bucket.check_writable('--workdir', self.path)
      return
    place = self.path.absolute()
    while not place.exists() and place != place.parent:
      place = place.parent
    try:
      with tempfile.TemporaryDirectory(prefix='.dynllm_jax-', dir=place):
        pass
    except OSError as error:
      raise InputError(
          f'--workdir: {str(self.path)!r} cannot be written ({error.strerror}: '
          f'{str(place)!r}); allowed: a folder that can be') from error

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Keeps other runs out of the folder; a killed process lets go of it.

    Not in a bucket, nor where files have no locks.

    Raises:
      InputError: if another process has it.
    """
    if bucket.is_url(self.path) or not is_writer():
      yield
      return
    self.path.mkdir(parents=True, exist_ok=True)
    with open(self.path / '.lock', 'w', encoding='utf-8') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise InputError(
            f'--workdir: {str(self.path)!r} is in use by another process; '
            'allowed: to wait for its end, or another folder') from error
      except OSError:  # a file system without locks
        pass
      yield

  def read_json(self, name: str) -> Any:
    """The JSON value of a file, None where there is no such file."""
    try:
      return json.loads((self.path / name).read_text())
    except FileNotFoundError:
      return None

  def write_json(self, name: str, value: Any) -> None:
    """Writes a JSON file whole, or not at all."""
    self._write(
        name, json.dumps(value, indent=2, sort_keys=False) + '\n')

  def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed npz file whole, or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    self._write(name, content.getvalue())

  def _write(self, name, content):
    if not is_writer():
      return
    if bucket.is_url(self.path):  # where files appear whole
      content = content.encode() if isinstance(content, str) else content
      (self.path / name).write_bytes(content)
    else:
      write_atomically(self.path / name, content)

  def write_metrics(self, records: list[dict[str, Any]]) -> None:
    """Writes `metrics.jsonl`, a line an epoch, and TensorBoard's events.

    Both hold what the epochs so far have shown, so that a resumed run neither
    repeats an epoch nor leaves one out: to write the same again changes
    nothing.
    """
    if not is_writer():
      return
    self._write(
        'metrics.jsonl',
        ''.join(json.dumps(record) + '\n' for record in records))
    # Imported here: it takes a second that a mistyped command need not wait.
    import tensorboardX  # pylint: disable=g-import-not-at-top
    folder = self.path / 'tensorboard'
    if len(records) <= 1 and folder.exists():
      for old in folder.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
      with tensorboardX.SummaryWriter(scratch) as writer:
        for name, value in records[-1].items():
          if name != 'epoch':
            writer.add_scalar(name, value, records[-1]['epoch'])
      (file,) = pathlib.Path(scratch).iterdir()
      self._write(
          f'tensorboard/events.out.tfevents.{records[-1]["epoch"]:06}',
          file.read_bytes())


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Replaces a file by a complete one."""
  if isinstance(content, str):
    content = content.encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.' + path.name)
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def commit() -> str:
  """The commit of the running code, or its version where there is no git."""
  folder = pathlib.Path(__file__).parent

  def git(*args):
    return subprocess.run(
        ['git', '-C', str(folder), *args], capture_output=True, text=True,
        check=True).stdout.strip()

  try:
    # What experiments write beside each other's runs is not code.
    changed = git('status', '--porcelain', '-uno', '--', ':/',
                  ':(top,exclude)experiments/results')
    dirty = '-modified' if changed else ''
    return git('rev-parse', 'HEAD') + dirty
  except (OSError, subprocess.CalledProcessError):
    return f'dynllm_jax {dynllm_jax.__version__}, outside a git checkout'


def machine() -> dict[str, Any]:
  """What the figures were measured on."""
  devices = jax.devices()
  return {
      'platform': devices[0].platform,
      'device': devices[0].device_kind,
      'devices': len(devices),
      'processes': jax.process_count(),
      'processor': platform.processor() or platform.machine(),
      'cores': len(os.sched_getaffinity(0)),
      'python': platform.python_version(),
      'jax': jax.__version__,
      'flax': importlib.metadata.version('flax'),
  }


def peak_memory_bytes() -> int:
  """The process's peak resident memory (Linux counts it in KiB)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows: Mapping[str, Mapping[str, float]], columns: list[str]) -> str:
  """A text table, a row a system, figures to four places."""
  width = max(len(name) for name in rows)
  lines = [' ' * width + ''.join(f'{c:>12}' for c in columns)]
  for name, values in rows.items():
    cells = ''.join(
        f'{values[c]:>12.4f}' if c in values else f'{"-":>12}' for c in columns)
    lines.append(f'{name:<{width}}{cells}')
  return '\n'.join(lines)
