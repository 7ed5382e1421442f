"""The files that a run leaves in its folder."""

from collections.abc import Iterator
import contextlib
import io
import json
import pathlib
import tempfile
from typing import Any
import zipfile
import zlib

import numpy as np

from dynllm_jax.progress import is_writer
from dynllm_jax.storage import bucket
from dynllm_jax.storage import locks
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import InputError


class RunFolder:
  """The files that a run leaves in its folder; process 0 alone writes them.

  Args:
    path: the folder, on a disk or in a bucket; made when first written to.

  Raises:
    InputError: if the path is neither on a disk nor in a supported bucket.
  """

  def __init__(self, path: str) -> None:
    self.path = bucket.open_path('--workdir', path)

  def check(self) -> None:
    """Stops, before any work is done, where the folder cannot be written.

    Raises:
      InputError: if the folder cannot be made or written in.
    """
    if bucket.is_url(self.path):
      bucket.check_writable('--workdir', self.path)
      return

    # The nearest folder above that exists; those below it are still to be made.
    above = self.path.absolute()
    while not above.exists() and above != above.parent:
      above = above.parent
    try:
      with tempfile.TemporaryDirectory(prefix='.dynllm_jax-', dir=above):
        pass
    except OSError as error:
      raise InputError(
        f'--workdir: {str(self.path)!r} cannot be written ({error.strerror}: '
        f'{str(above)!r}); allowed: a folder that can be'
      ) from error

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Keeps other runs out of the folder while this one works in it.

    The system frees the lock when a process ends, however it does. There is
    no lock in a bucket, nor on a file system without locks.

    Raises:
      InputError: if another process has it.
    """
    if bucket.is_url(self.path) or not is_writer():
      yield
      return
    self.path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      try:
        free = stack.enter_context(
          locks.lock_file(self.path / '.lock', wait=False)
        )
      except locks.Unsupported:
        free = True
      if not free:
        raise InputError(
          f'--workdir: {str(self.path)!r} is in use by another process; '
          'allowed: to wait for its end, or another folder'
        )

      yield

  def read_json(self, name: str) -> Any:
    """The JSON value of a file; None if there is no such file."""
    try:
      return json.loads((self.path / name).read_text())
    except FileNotFoundError:
      return None

  def read_arrays(self, name: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file; none if there is no such file.

    Raises:
      InputError: if the file is damaged.
    """
    try:
      content = (self.path / name).read_bytes()
    except FileNotFoundError:
      return {}
    try:
      with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
      raise InputError(
        f'--workdir: {str(self.path / name)!r} is damaged ({error}); allowed: '
        'the file as the run wrote it, or none'
      ) from error

  def write_text(self, name: str, content: str) -> None:
    """Writes a text file, whole or not at all."""
    self._write(name, content)

  def write_json(self, name: str, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    self._write(name, json.dumps(value, indent=2, sort_keys=False) + '\n')

  def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    self._write(name, content.getvalue())

  def _write(self, name: str, content: str | bytes) -> None:
    if not is_writer():
      return
    if bucket.is_url(self.path):  # where a file appears whole
      content = content.encode() if isinstance(content, str) else content
      (self.path / name).write_bytes(content)
    else:
      write_atomically(self.path / name, content)

  def write_metrics(self, records: list[dict[str, Any]]) -> None:
    """Writes `metrics.jsonl`, a line an epoch, and TensorBoard's events.

    `metrics.jsonl` is written anew with all epochs so far. TensorBoard gets a
    file for the last epoch, named by its number. So a resumed run, which calls
    this again for its last epoch, neither repeats an epoch nor leaves one out.

    Args:
      records: one for each finished epoch, with its number as `epoch`.
    """
    if not is_writer():
      return

    self._write(
      'metrics.jsonl', ''.join(json.dumps(record) + '\n' for record in records)
    )
    # Imported here: it takes a second, which a mistyped command should not wait
    # for.
    import tensorboardX

    folder = self.path / 'tensorboard'
    if len(records) <= 1 and folder.exists():
      for old in folder.iterdir():
        old.unlink()
    # TensorBoard would name the file by the time.
    with tempfile.TemporaryDirectory() as scratch:
      with tensorboardX.SummaryWriter(scratch) as writer:
        for name, value in records[-1].items():
          if name != 'epoch':
            writer.add_scalar(name, value, records[-1]['epoch'])
      (file,) = pathlib.Path(scratch).iterdir()
      self._write(
        f'tensorboard/events.out.tfevents.{records[-1]["epoch"]:06}',
        file.read_bytes(),
      )
