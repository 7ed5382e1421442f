"""Loading the log of `config.data`: read and prepared once, then kept.

The log is read by a source, which `config.data.source` names: a module of
`datasets/sources`, by its file name, or any other that Python finds, by its
full name (`config.data.source=my_shop.receipts`; see plugins.py). A source has

    VERSION: int
    files(data_config: ml_collections.ConfigDict) -> list[source_files.File]
    read(data_config: ml_collections.ConfigDict) -> RawLog

`files` returns the files that the log is made of, in the order in which their
fields stand in the configuration; `source_files.File.of(data_config, 'events')`
is the file that `config.data.events` names, checked to be there, and
`source_files.File.all_of` the files of a pattern or a folder. A source that
makes its log returns no file. Every file's content is hashed before `read` and
after it.

`read` returns the log as it stands there (types.py): `users` and `items`,
str[events] of dtype object, none empty; `times`, i64[events], unix seconds, in
any order, and where they have parts of a second `fractions`, i64[events],
nanoseconds; the item table's `item_ids`, each once, `titles`, `categories` and
`brands`, str[table] of dtype object and of one length, '' where there is no
text, all of length 0 without a table; `counts`, int by what was counted, in
words; `source`, what was read, in words. Duplicates, sampling, the core,
numbering and the split follow for every source (prepare.py). The same files
and fields of `config.data` must give the same log. What is shared by sources,
such as formats, columns and bad rows, is in `datasets/reading`.

Both raise `InputError`, in one line, for a field, a file or a row that is not
allowed: the field, its value, the place and what is allowed.

A prepared log is found again by its fingerprint: the content of the files, the
fields of `config.data` other than places, and for a source from outside its
module's name and `VERSION`. So raise `VERSION` whenever the same files and
fields give another log; in this package that is `_VERSION`, below, for all
sources.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import hashlib
import json
import pathlib
import types

import ml_collections

from dynllm_jax import checks
from dynllm_jax import plugins
from dynllm_jax.checks import Rule
from dynllm_jax.datasets import first_rows
from dynllm_jax.datasets import live_events
from dynllm_jax.datasets import log_store
from dynllm_jax.datasets import prepare
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import raw_log
from dynllm_jax.datasets.reading import row_filters
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import time_columns
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.storage import bucket
from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage import build_folder
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog

# Raised whenever reading or preparing changes what comes out, of any source of
# this package.
_VERSION = 3
# Fields of `config.data` on which no log depends: places, and how much of an
# item table may be missing.
NO_CONTENT = ('dir', 'events', 'items', 'journal', 'items_missing')


# Of the fields that every source shares.
RULES = (
  checks.one_of('bad_rows', ('error', 'drop')),
  checks.one_of('items_missing', ('error', 'warn')),
  checks.one_of('time_unit', time_columns.TIME_UNITS),
  Rule('where', row_filters.ALLOWED, row_filters.is_allowed),
  checks.at_least('min_user_items', 0),
  checks.at_least('min_item_users', 0),
  Rule('sample_users', 'above 0 and at most 1', lambda value: 0 < value <= 1),
  *(
    Rule(f'{role}_column', 'a name, or a position from 0', bool)
    for role in ('user', 'item', 'time')
  ),
  checks.at_least('sample_seed', 0),
  checks.at_least('simulation_seed', 0),
  *source_files.RULES,
)


def load(
  data_config: ml_collections.ConfigDict, report: Callable[[str], None] = print
) -> EventLog:
  """The prepared log of `config.data` (SPEC 2).

  It is prepared once for each content of the files and each set of fields, and
  kept in `data.dir`; later calls read the files only to hash them. Where
  `data.events` names a log, it is read instead of a simulated one.

  Args:
    data_config: `config.data`.
    report: receives lines: what was read, dropped and kept.

  Raises:
    InputError: for a field, a file or a row that is not allowed.
  """
  check(data_config)
  source = _source(data_config)
  found_by = _fingerprint(data_config, source)
  folder = data_folder(data_config) / 'event_logs' / found_by
  log = _load_stored(folder, found_by, report)
  if log is not None and not _lacks_items(log, data_config):
    _report(log, data_config, report)
    return log

  raw = read(data_config)
  if _fingerprint(data_config, source) != found_by:
    first = source.files(data_config)[0]
    raise InputError(
      f'{first.field}: {first.path} or a file read with it was changed '
      'while it was read; allowed: files that stay as they are'
    )
  log = prepare.prepare(raw, data_config, found_by)
  if _lacks_items(log, data_config):
    raise item_tables.mismatch(log.item_ids[1:], raw.item_ids)
  report(f'data: {log.source}')
  _report(log, data_config, report)

  with _writing(folder):
    log_store.save(log, folder)
    bucket_copy.publish_folder(folder)
  report(f'data: stored in {folder}')
  return log


def read(data_config: ml_collections.ConfigDict) -> RawLog:
  """The log as its files have it now, and what was observed live after it.

  Raises:
    InputError: for a field, a file or a row that is not allowed.
  """
  raw: RawLog = _source(data_config).read(data_config)
  for file in _journal(data_config):
    raw = live_events.add(raw, file)
  return raw


def fingerprint(data_config: ml_collections.ConfigDict) -> str:
  """What `load` would find the log by, as its files are now.

  Raises:
    InputError: for a field or a file that is not allowed.
  """
  check(data_config)
  return _fingerprint(data_config, _source(data_config))


def load_prepared(
  data_config: ml_collections.ConfigDict, fingerprint: str
) -> EventLog:
  """A prepared log by its fingerprint; its files may be gone by now.

  Args:
    data_config: `config.data`, of which `dir` is read.
    fingerprint: as checkpoints remember it.

  Raises:
    InputError: if `data.dir` does not have it, whole.
  """
  folder = data_folder(data_config) / 'event_logs' / fingerprint
  try:
    if bucket_copy.fetch_folder(folder):
      return log_store.load(folder, fingerprint)
    fault = 'is not there'
  except log_store.DamagedError as error:
    fault = f'is damaged ({error})'
  raise InputError(
    f'config.data.dir: the prepared log {folder} {fault}; allowed: the folder '
    'of prepared data that the run was trained with'
  )


def _load_stored(
  folder: pathlib.Path, fingerprint: str, report: Callable[[str], None]
) -> EventLog | None:
  """The log that a folder holds; None if it has none, or a damaged one."""
  if not bucket_copy.fetch_folder(folder):
    return None
  try:
    log = log_store.load(folder, fingerprint)
  except log_store.DamagedError as error:
    report(f'data: {folder} is damaged: {error}; it is prepared again')
    with _writing(folder):
      build_folder.remove(folder)
    return None
  report(f'data: {log.source}')
  report(f'data: loaded from {folder}')
  return log


def _lacks_items(log: EventLog, data_config: ml_collections.ConfigDict) -> bool:
  """Whether too few items of a log are in its item table to go on."""
  missing = log.counts.get(prepare.NOT_IN_TABLE, 0)
  return data_config.items_missing == 'error' and item_tables.too_few_found(
    missing, log.num_items
  )


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns errors of the disk into an InputError about `data.dir`."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # tfds's, for a full disk
    raise InputError(
      f'config.data.dir: {folder} cannot be written ({error}); allowed: a '
      'folder that can be written, on a disk with room'
    ) from error


def data_folder(data_config: ml_collections.ConfigDict) -> pathlib.Path:
  """Where prepared data are kept: `data.dir` or the user's cache.

  For a folder in a bucket, the copy on this machine (bucket_copy.py).

  Raises:
    InputError: if the kind of place is not supported.
  """
  if data_config.dir:
    return bucket.local_path('config.data.dir', data_config.dir)
  return bucket.cache_folder()


def check(data_config: ml_collections.ConfigDict) -> None:
  """Checks the fields that every source shares.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  checks.check('config.data', data_config, RULES)


def check_files(data_config: ml_collections.ConfigDict) -> None:
  """Checks all fields, and that the files which they name are there.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  checks.gather(
    [
      lambda: check(data_config),
      lambda: raw_log.check_roles(data_config),
      lambda: data_folder(data_config),
      lambda: _source(data_config).files(data_config),
      lambda: _journal(data_config),
    ]
  )


def preview(
  data_config: ml_collections.ConfigDict, report: Callable[[str], None] = print
) -> None:
  """Says how the files of the log are read, by their first rows.

  Args:
    data_config: `config.data`.
    report: receives lines.

  Raises:
    InputError: for whatever is wrong with them.
  """
  source = _source(data_config)
  if source is event_log:
    first_rows.show(data_config, report)
    return
  files = source.files(data_config)
  if not files:
    report(f'check: the log is made by the source {data_config.source!r}')
  for file in files:
    names = file_formats.column_names(file)
    shown = ', '.join(map(checks.shown, names))
    report(f'check: {file.field}: {file.path}: has the columns {shown}')


def _source(data_config: ml_collections.ConfigDict) -> types.ModuleType:
  """The source of a log: a log that is named is read, not simulated."""
  named = data_config.source == 'simulated' and data_config.events
  return plugins.load(
    plugins.SOURCES,
    'event_log' if named else data_config.source,
    'config.data.source',
  )


def _fingerprint(
  data_config: ml_collections.ConfigDict, source: types.ModuleType
) -> str:
  """A hash of the files' content and of all else that the log depends on."""
  fields = json.loads(data_config.to_json())
  for field in NO_CONTENT:
    del fields[field]
  files = []
  for file in [*source.files(data_config), *_journal(data_config)]:
    with open(file.path, 'rb') as stream:
      digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    # Without `config.`, as in the fingerprints of logs that are kept already.
    field = file.field.removeprefix('config.')
    # Not the name: a log that is renamed is the same log.
    files.append([field, *file_formats.reading_by_name(file), digest])
  content = [_VERSION, fields, files]
  if version := plugins.version(plugins.SOURCES, source):
    content.append(version)
  key = json.dumps(content, sort_keys=True)
  return hashlib.sha256(key.encode()).hexdigest()


def _journal(
  data_config: ml_collections.ConfigDict,
) -> list[source_files.File]:
  """The file of events observed live, if one is named."""
  if not data_config.journal:
    return []
  return [source_files.File.of(data_config, 'journal')]


def _report(
  log: EventLog,
  data_config: ml_collections.ConfigDict,
  report: Callable[[str], None],
) -> None:
  """Says what was read and what was left out."""
  counts = dict(log.counts)
  outside = {
    what: counts.pop(prepare.OUTSIDE.format(what), 0)
    for what in ('events', 'users', 'items')
  }
  for name, count in counts.items():
    report(f'data: {name}: {count:,}')
  if counts.get(prepare.NOT_IN_TABLE, 0):
    share = counts[prepare.NOT_IN_TABLE] / log.num_items
    report(
      f'data: warning: {share:.0%} of the items have no text, as the item '
      'table lacks them'
    )

  had = log.num_events + outside['events']
  report(
    f'data: {log.num_events / had:.1%} of the events are kept: the core (every '
    f'user with {data_config.min_user_items} items or more, every item with '
    f'{data_config.min_item_users} users) leaves out {outside["events"]:,} of '
    f'{had:,} events, {outside["users"]:,} of '
    f'{log.num_users + outside["users"]:,} users and {outside["items"]:,} of '
    f'{log.num_items + outside["items"]:,} items (config.data.min_user_items, '
    'config.data.min_item_users)'
  )
