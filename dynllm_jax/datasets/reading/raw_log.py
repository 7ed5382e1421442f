"""From columns to a RawLog: events, their times, bad rows, counts."""

from collections.abc import Sequence
import datetime
import pathlib
from typing import NamedTuple

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.datasets.reading import time_columns
from dynllm_jax.types import RawLog


class Events(NamedTuple):
  """Good events.

  Attributes:
    users, items: str[events].
    times: i64[events], unix seconds.
    kept: i64[events], their rows in the columns they were read from.
    counts: rows dropped, by reason.
    unit: the unit the times were in, and their range, in words.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  kept: np.ndarray
  counts: dict[str, int]
  unit: str


def files(data_config: ml_collections.ConfigDict) -> list[source_files.File]:
  """The files of a log: the events, and the item table if one is named.

  Raises:
    InputError: if a file is missing or empty, or how to read it is not allowed.
  """
  # By key: `.items` of a plain ConfigDict is the method of that name.
  fields = ['events'] + (['items'] if data_config['items'] else [])
  return [source_files.File.of(data_config, field) for field in fields]


def has_configured_columns(
  there: Sequence[str], data_config: ml_collections.ConfigDict
) -> bool:
  """Whether columns of a file have the configured names of user, item, time."""
  return set(_event_columns(data_config).values()) <= set(there)


def read_configured(data_config: ml_collections.ConfigDict) -> RawLog:
  """Reads the log whose columns `config.data` names (SPEC 2.1, 2.2).

  `where` chooses rows first; then bad rows stop the run or are dropped and
  counted. Ids stay as they are written. Times are unix seconds, milli-, micro-
  or nanoseconds or ISO 8601; see `time_columns.parse`.

  Args:
    data_config: `config.data`.

  Raises:
    InputError: for a file that cannot be read, a missing column, a filter that
      leaves nothing, or a bad row.
  """
  event_file, *item_files = files(data_config)
  columns = columns_by_role.read_columns(
    event_file, _event_columns(data_config), where=data_config.where
  )
  log = events(columns, data_config)
  source = f'event log {file_name(event_file)}'
  if not item_files:
    return assemble(
      log,
      item_tables.no_items(),
      columns.counts,
      f'{source} without an item table',
    )

  table = columns_by_role.read_columns(
    item_files[0],
    {
      'item': data_config.items_item_column or data_config.item_column,
      'title': data_config.title_column,
      'category': data_config.category_column,
      'brand': data_config.brand_column,
    },
    optional=item_tables.TEXTS,
  )
  absent = [role for role in item_tables.TEXTS if role not in table.names]
  source += f' with items {file_name(item_files[0])}'
  if absent:
    source += f' (which has no column for {", ".join(absent)})'
  items = item_tables.read_items(table, data_config.bad_rows)
  return assemble(log, items, columns.counts, source)


def events(
  columns: columns_by_role.Columns,
  data_config: ml_collections.ConfigDict,
  time_column: pa.ChunkedArray | None = None,
) -> Events:
  """Good events of the columns `user`, `item`, `time` (SPEC 2.1).

  Args:
    columns: what was read.
    data_config: `config.data`.
    time_column: the times in place of the column `time`, whose cells messages
      still name.

  Raises:
    InputError: at the first bad row, if such rows are not dropped; if the unit
      of the times cannot be told; if no row is good.
  """
  place = (
    f'{columns.file.field}: {columns.file.path}: column '
    f'{columns.names["time"]!r}'
  )
  with file_formats.reading(columns.file):
    users, no_user = text_columns.ids(columns.table['user'])
    items, no_item = text_columns.ids(columns.table['item'])
    times = time_columns.parse(
      columns.table['time'] if time_column is None else time_column,
      data_config.time_unit,
      place,
    )

  unit = (
    'ISO 8601 text or dates'
    if times.unit == 'iso'
    else f'whole or decimal unix {times.unit} from 1970 to 2100'
  )
  problem = columns_by_role.Problem
  problems = [
    problem('user', 'is missing', no_user, 'any non-empty id'),
    problem('item', 'is missing', no_item, 'any non-empty id'),
    *(
      problem('time', what, bad, f'{unit}, as in the rest of the column')
      for what, bad in times.problems.items()
    ),
  ]
  kept, counts = columns_by_role.good_rows(
    columns, problems, data_config.bad_rows
  )
  if not len(kept):
    raise columns.file.error(f'has no good row; dropped: {counts}')

  seconds = times.seconds[kept]
  span = f'{_date(seconds.min())} to {_date(seconds.max())}'
  return Events(
    users[kept],
    items[kept],
    seconds,
    kept=kept,
    counts=counts,
    unit=f'time unit {times.unit}, {span}',
  )


def assemble(
  log: Events, items: item_tables.Items, counts: dict[str, int], source: str
) -> RawLog:
  """Puts a log and its item table together and counts what has no text.

  Args:
    log: the events.
    items: the table.
    counts: what was counted before, of the file of events.
    source: what was read, in words.
  """
  counts = {
    **counts,
    **log.counts,
    'events read': len(log.users),
    **items.counts,
  }

  if len(items.item_ids):
    bought = text_columns.number(log.items).distinct
    known = pc.is_in(
      pa.array(bought, pa.large_string()),
      pa.array(items.item_ids, pa.large_string()),
    )
    counts['items of the log that the item table lacks'] = (
      len(bought) - known.true_count
    )
    texts = (items.titles, items.categories, items.brands)
    for role, text in zip(item_tables.TEXTS, texts):
      counts[f'item table: items without a {role}'] = int((text == '').sum())

  return RawLog(
    users=log.users,
    items=log.items,
    times=log.times,
    item_ids=items.item_ids,
    titles=items.titles,
    categories=items.categories,
    brands=items.brands,
    counts=counts,
    source=f'{source} ({log.unit})',
  )


def file_name(file: source_files.File) -> str:
  """A file's name for reports, which stay true if its folder is moved."""
  return pathlib.Path(file.path).name


def _event_columns(data_config: ml_collections.ConfigDict) -> dict[str, str]:
  """Column names or positions of an event's three roles, as configured."""
  return {
    'user': data_config.user_column,
    'item': data_config.item_column,
    'time': data_config.time_column,
  }


def _date(seconds: int) -> str:
  moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
  return moment.date().isoformat()
