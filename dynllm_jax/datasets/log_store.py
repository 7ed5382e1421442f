"""Prepared logs on disk, in the format of TensorFlow Datasets.

Writing and reading need the packages tensorflow_datasets and array_record, not
TensorFlow itself.
"""

from collections.abc import Iterator
import contextlib
import functools
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from dynllm_jax.storage import build_folder
from dynllm_jax.types import EventLog

_BLOCK_ROWS = 4096  # One record holds this many rows of every column.
_SPLIT = 'log'
_EVENTS = {'users': np.int32, 'items': np.int32, 'times': np.int64}
_TEXTS = ('user_ids', 'item_ids', 'titles', 'categories', 'brands')
_COLUMNS = (*_EVENTS, *_TEXTS)
_SCALARS = (
  'train_end',
  'validation_end',
  'start_time',
  'counts',
  'source',
  'simulated',
  'fingerprint',
)


class DamagedError(Exception):
  """A stored log is not what was written."""


def save(log: EventLog, folder: pathlib.Path) -> None:
  """Writes a log as the folder `folder`, whole or not at all.

  The data set is built beside its place and renamed, so that no reader sees
  part of it. Where another process was first, its copy stays if it is sound.

  Raises:
    OSError: if the folder cannot be written.
  """
  import tensorflow_datasets as tfds

  with build_folder.new_folder(folder.parent) as fresh:
    builder = _builder_class()(
      log=log, data_dir=fresh, file_format='array_record'
    )
    # Writing takes seconds, and the bar would name a temporary folder.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
    _place(pathlib.Path(builder.data_dir), folder, log.fingerprint)


def load(folder: pathlib.Path, fingerprint: str) -> EventLog:
  """Reads the log back, equal to what was saved.

  Raises:
    DamagedError: if a file is missing or broken, or the content is not what
      the stored metadata say.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    metadata = builder.info.metadata
    blocks = list(builder.as_data_source(split=_SPLIT))
    columns: dict[str, Any] = {
      name: np.concatenate([block[name] for block in blocks])
      for name in _EVENTS
    }
    for name in _TEXTS:
      columns[name] = np.array(
        [text.decode() for block in blocks for text in block[name]], object
      )
    scalars = {name: metadata[name] for name in _SCALARS}
    rows, sha256 = metadata['rows'], metadata['sha256']
  # Whatever tfds, protobuf, json and array_record raise on a broken file:
  # they share no base class, and are all dealt with alike.
  except Exception as error:
    raise DamagedError(f'it cannot be read ({error})') from error
  if scalars['fingerprint'] != fingerprint:
    raise DamagedError('its metadata belong to another data set')
  found = {name: len(column) for name, column in columns.items()}
  if rows != found:
    raise DamagedError(f'it has {found} rows instead of {rows}')
  if _digest(columns, scalars) != sha256:
    raise DamagedError('its content has changed')
  return EventLog(**columns, **scalars)


def _place(built: pathlib.Path, folder: pathlib.Path, fingerprint: str) -> None:
  """Renames a built data set to its place."""
  try:
    built.rename(folder)
  except OSError:
    if not folder.exists():
      raise
    try:
      load(folder, fingerprint)
    except DamagedError:
      build_folder.remove(folder)
      built.rename(folder)


def _digest(columns: dict[str, np.ndarray], scalars: dict[str, Any]) -> str:
  """A checksum of everything in a log."""
  digest = hashlib.sha256(json.dumps(scalars, sort_keys=True).encode())
  for name in _COLUMNS:
    column = columns[name]
    digest.update(f'{name} {len(column)}\n'.encode())
    if column.dtype == object:
      digest.update('\0'.join(column).encode())
    else:
      digest.update(np.ascontiguousarray(column).data)
  return digest.hexdigest()


def _blocks(
  columns: dict[str, np.ndarray],
) -> Iterator[tuple[int, dict[str, Any]]]:
  """The log's records; the last ones hold nothing of the shorter columns."""
  longest = max(map(len, columns.values()))
  for number, start in enumerate(range(0, longest, _BLOCK_ROWS)):
    yield (
      number,
      {
        name: column[start : start + _BLOCK_ROWS]
        for name, column in columns.items()
      },
    )


@functools.cache
def _builder_class() -> type:
  """The class of a prepared log's builder.

  Made by a function, since its base class is in tensorflow_datasets, which is
  slow to import and needed only where a log is stored or loaded.
  """
  import tensorflow_datasets as tfds

  class PreparedLog(tfds.core.GeneratorBasedBuilder):
    """A prepared event log."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, log: EventLog, **kwargs: Any) -> None:
      self._columns = {name: getattr(log, name) for name in _COLUMNS}
      self._scalars = {name: getattr(log, name) for name in _SCALARS}
      super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
      features = {
        name: tfds.features.Tensor(shape=(None,), dtype=dtype)
        for name, dtype in _EVENTS.items()
      }
      features |= {
        name: tfds.features.Sequence(tfds.features.Text()) for name in _TEXTS
      }
      rows = {name: len(column) for name, column in self._columns.items()}
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(
          rows=rows,
          sha256=_digest(self._columns, self._scalars),
          **self._scalars,
        ),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      del dl_manager  # Nothing is downloaded.
      return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
      return _blocks(self._columns)

  return PreparedLog
