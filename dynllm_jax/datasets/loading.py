"""Prepared logs: read by a source, prepared once, kept on disk.

A source is a file of datasets/sources, or a module from elsewhere (plugins.py),
with two functions of `config.data`: `files(data_config)`, the files that it
reads (`source_files.File`), and `read(data_config)`, which gives a `RawLog`.
It may have a `VERSION`, raised whenever `read` gives another log of the same
files: without it a log that was prepared before the change would still serve.
"""

from collections.abc import Callable
import contextlib
import hashlib
import json
import pathlib
from typing import Any

from dynllm_jax import checks
from dynllm_jax import plugins
from dynllm_jax.checks import Rule
from dynllm_jax.datasets import log_store
from dynllm_jax.datasets import prepare
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import time_columns
from dynllm_jax.storage import bucket
from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage import build_folder
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

# Raised whenever reading or preparing changes what comes out.
_VERSION = 2


def load(data_config: Any, report: Callable[[str], None] = print) -> EventLog:
  """The prepared log of `config.data` (SPEC 2).

  It is prepared once for each content of the files and each set of fields, and
  kept in `data.dir`; later calls read the files only to hash them. A real log
  that is named stands in for a simulated one.

  Args:
    data_config: `config.data`.
    report: receives lines: what was read, dropped and kept.

  Raises:
    InputError: for a field, a file or a row that is not allowed.
  """
  check(data_config)
  named = data_config.source == 'simulated' and data_config.events
  source = plugins.load(
    plugins.SOURCES,
    'event_log' if named else data_config.source,
    'config.data.source',
  )
  version = getattr(source, 'VERSION', None)
  fingerprint = _fingerprint(data_config, source.files(data_config), version)
  folder = data_folder(data_config) / 'event_logs' / fingerprint
  if bucket_copy.fetch_folder(folder):
    try:
      log = log_store.load(folder, fingerprint)
      report(f'data: {log.source}')
      report(f'data: loaded from {folder}')
      _report_counts(log.counts, report)
      return log
    except log_store.DamagedError as error:
      report(f'data: {folder} is damaged: {error}; it is prepared again')
      with _writing(folder):
        build_folder.remove(folder)
  files = source.files(data_config)
  raw = source.read(data_config)
  if _fingerprint(data_config, files, version) != fingerprint:
    raise InputError(
      f'{files[0].field}: {files[0].path} or a file read with it was changed '
      'while it was read; allowed: files that stay as they are'
    )
  report(f'data: {raw.source}')
  _report_counts(raw.counts, report)
  log = prepare.prepare(raw, data_config, fingerprint)
  _report_counts(
    {
      name: count
      for name, count in log.counts.items()
      if name not in raw.counts
    },
    report,
  )
  with _writing(folder):
    log_store.save(log, folder)
    bucket_copy.publish_folder(folder)
  report(f'data: stored in {folder}')
  return log


@contextlib.contextmanager
def _writing(folder):
  try:
    yield
  except (OSError, RuntimeError) as error:  # the latter tfds's, of a full disk
    raise InputError(
      f'config.data.dir: {folder} cannot be written ({error}); it must '
      'be a folder that can be, with room'
    ) from error


def data_folder(data_config: Any) -> pathlib.Path:
  """Where prepared data are kept: `data.dir` or the user's cache.

  Of a bucket's folder, the copy on this machine (bucket_copy.py).

  Raises:
    InputError: if it is of a place that is not supported.
  """
  if data_config.dir:
    return bucket.local_path('config.data.dir', data_config.dir)
  return bucket.cache_folder()


def check(data_config: Any) -> None:
  """Checks the fields that every source shares.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  where = Rule('where', "a mapping, as {'behavior': 'buy'}", _selects_rows)
  sample_users = Rule(
    'sample_users', 'above 0 and at most 1', lambda value: 0 < value <= 1
  )
  checks.check(
    'config.data',
    data_config,
    [
      checks.one_of('bad_rows', ('error', 'drop')),
      checks.one_of('time_unit', time_columns.TIME_UNITS),
      where,
      checks.at_least('min_user_items', 0),
      checks.at_least('min_item_users', 0),
      sample_users,
      checks.at_least('sample_seed', 0),
      checks.at_least('simulation_seed', 0),
    ],
  )


def _selects_rows(where: Any) -> bool:
  """Whether `data.where` is None or a mapping of columns to values."""
  # A mapping of ml_collections is no collections.abc.Mapping.
  return where is None or (
    hasattr(where, 'items')
    and all(
      isinstance(value, (str, int, float, list, tuple))
      for value in where.values()
    )
  )


def _fingerprint(
  data_config: Any, files: list[source_files.File], version: int | None
) -> str:
  """A hash of the files' content and of what preparation depends on."""
  fields = json.loads(data_config.to_json())
  for field in ('dir', 'events', 'items'):  # Places, not content.
    del fields[field]
  contents = []
  for file in files:
    with open(file.path, 'rb') as stream:
      digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    # By the short name, which fingerprints had before messages had the full.
    field = file.field.removeprefix('config.')
    contents.append([field, pathlib.Path(file.path).suffixes, digest])
  parts = [_VERSION, fields, contents, *([] if version is None else [version])]
  key = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(key.encode()).hexdigest()


def _report_counts(
  counts: dict[str, int], report: Callable[[str], None]
) -> None:
  for name, count in counts.items():
    report(f'data: {name}: {count:,}')
