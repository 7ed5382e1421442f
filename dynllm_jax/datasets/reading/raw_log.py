"""From columns to a RawLog: events, their times, bad rows, counts."""

from collections.abc import Sequence
import datetime
import itertools
import os
import pathlib
from typing import NamedTuple

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax import checks
from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import item_tables
from dynllm_jax.datasets.reading import known_files
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.datasets.reading import time_columns
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog

EVENT_ROLES = ('user', 'item', 'time')


class Events(NamedTuple):
  """Good events.

  Attributes:
    users, items: str[events].
    times: i64[events], unix seconds.
    fractions: i64[events], nanoseconds since those seconds.
    kept: i64[events], their rows in the columns they were read from.
    counts: rows dropped, by reason.
    unit: the unit the times were in, and their range, in words.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  fractions: np.ndarray
  kept: np.ndarray
  counts: dict[str, int]
  unit: str


def files(data_config: ml_collections.ConfigDict) -> list[source_files.File]:
  """The files of a log: the events, and the item table if there is one.

  Raises:
    InputError: if a file is missing or empty, or how to read it is not allowed.
  """
  return event_files(data_config) + item_files(data_config)


def event_files(
  data_config: ml_collections.ConfigDict,
) -> list[source_files.File]:
  """The files of the events; a pattern and a folder name several.

  Raises:
    InputError: as `files`.
  """
  return source_files.File.all_of(data_config, 'events')


def item_files(
  data_config: ml_collections.ConfigDict,
) -> list[source_files.File]:
  """The files of the item table, none if there is no such table.

  Where `data.items` is empty, it is the table that is published with the log
  and lies beside it, such as RecBole's NAME.item beside NAME.inter.

  Raises:
    InputError: as `files`.
  """
  # By key: `.items` of a plain ConfigDict is the method of that name.
  place = data_config['items']
  if place == source_files.NO_FILE:
    return []
  if not place:
    place = known_files.items_beside(event_files(data_config)[0].path)
  return source_files.File.all_of(data_config, 'items', place) if place else []


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
  logs, tables = event_files(data_config), item_files(data_config)
  columns = event_columns(data_config, logs)
  log = events(columns, data_config)
  source = f'event log {file_names(logs)}'
  if not tables:
    return assemble(
      log,
      item_tables.no_items(),
      columns.counts,
      f'{source} without an item table',
    )

  table = item_columns(data_config, tables)
  absent = [role for role in item_tables.TEXTS if role not in table.names]
  source += f' with items {file_names(tables)}'
  if absent:
    source += f' (which has no column for {", ".join(absent)})'
  _check_items_header(table, log)
  items = item_tables.read_items(table, data_config.bad_rows)
  return assemble(log, items, columns.counts, source)


def event_columns(
  data_config: ml_collections.ConfigDict, logs: Sequence[source_files.File]
) -> columns_by_role.Columns:
  """The configured columns of the events, of the rows that `where` keeps.

  Raises:
    InputError: as `read_configured`.
  """
  check_roles(data_config)
  wanted = _event_columns(data_config)
  return columns_by_role.read_columns(
    logs,
    wanted,
    where=data_config.where,
    fields={role: f'config.data.{role}_column' for role in wanted},
  )


def item_columns(
  data_config: ml_collections.ConfigDict, tables: Sequence[source_files.File]
) -> columns_by_role.Columns:
  """The columns of an item table, as configured, else by usual names.

  Raises:
    InputError: as `read_configured`, or if there is no column of texts.
  """
  table = columns_by_role.read_columns(
    tables,
    {
      'item': data_config.items_item_column or data_config.item_column,
      **{
        role: data_config[f'{role}_column'] or names
        for role, names in item_tables.USUAL_NAMES.items()
      },
    },
    fields={
      'item': 'config.data.items_item_column',
      **{role: f'config.data.{role}_column' for role in item_tables.TEXTS},
    },
  )
  if not set(item_tables.TEXTS) & set(table.names):
    raise _no_text(tables[0])
  return table


def _no_text(table: source_files.File) -> InputError:
  """The error about an item table none of whose columns is known."""
  there = ', '.join(map(checks.shown, file_formats.column_names(table)))
  fields = ', '.join(f'config.data.{r}_column' for r in item_tables.TEXTS)
  return table.error(
    f'has no column of a usual name for titles, categories or brands; there '
    f'are: {there}; allowed: one of them or its position as one of {fields}'
  )


def _check_items_header(table: columns_by_role.Columns, log: Events) -> None:
  """Stops where the first line of an item table is an item of the log."""
  file = table.file
  if file.kind in ('csv', 'xlsx') and file.header:
    name = table.names['item'].strip()
    if name and (log.items == name).any():
      raise file.error(
        f'the first line cannot be a header: its cell {name!r} is an item of '
        'the log; a table without a header needs config.data.items_header=False'
      )


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
    users = text_columns.ids(columns.table['user'])
    items = text_columns.ids(columns.table['item'])
    _check_header(columns, data_config, users, items)
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
  problems = [
    *columns_by_role.id_problems('user', users),
    *columns_by_role.id_problems('item', items),
    *(
      columns_by_role.Problem(
        'time', what, bad, f'{unit}, as in the rest of the column'
      )
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
  changed = {
    f'rows whose {role} {what}': count
    for role, ids in (('user', users), ('item', items))
    for what, count in ids.counts.items()
    if count
  }
  return Events(
    users.names[kept],
    items.names[kept],
    seconds,
    fractions=times.fractions[kept],
    kept=kept,
    counts={**changed, **counts},
    unit=f'time unit {times.unit}, {span}',
  )


def _check_header(
  columns: columns_by_role.Columns,
  data_config: ml_collections.ConfigDict,
  users: text_columns.Ids,
  items: text_columns.Ids,
) -> None:
  """Stops where the first line of a file cannot have the columns' names.

  Raises:
    InputError: if its cell in the column of the times is a time, or those of
      user and item, chosen by position, are ids of the log.
  """
  by_position = all(
    columns_by_role.position(data_config[f'{role}_column']) is not None
    for role in ('user', 'item')
  )
  for file, names in zip(columns.files, columns.names_by_file):
    if file.kind not in ('csv', 'xlsx') or not file.header:
      continue
    there = file_formats.column_names(file)
    # pandas numbers columns that have no names.
    if there == [str(position) for position in range(len(there))]:
      continue

    cells = {role: names[role].strip() for role in EVENT_ROLES}
    if time_columns.is_time(cells['time']):
      why = f'its cell {cells["time"]!r}, of the column of the times, is a time'
    elif by_position and all(
      cells[role] and (ids.names == cells[role]).any()
      for role, ids in (('user', users), ('item', items))
    ):
      why = f'{cells["user"]!r} is a user and {cells["item"]!r} an item of it'
    else:
      continue
    raise file.error(
      f'the first line cannot be a header: {why}; a file without a header '
      'needs config.data.header=False'
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
    fractions=log.fractions,
    item_ids=items.item_ids,
    titles=items.titles,
    categories=items.categories,
    brands=items.brands,
    counts=counts,
    source=f'{source} ({log.unit})',
  )


def file_names(files: Sequence[source_files.File]) -> str:
  """Files by name for reports, which stay true if their folder is moved.

  Of several it is that of their folder: what writes a log in parts gives them
  names that say nothing.
  """
  paths = [pathlib.Path(file.path).absolute() for file in files]
  if len(paths) == 1:
    return paths[0].name
  above = pathlib.Path(os.path.commonpath([path.parent for path in paths]))
  return f'{above.name or above} ({len(files)} files)'


def check_roles(data_config: ml_collections.ConfigDict) -> None:
  """Checks that user, item and time are three columns.

  Raises:
    InputError: if two of them are one.
  """
  roles = _event_columns(data_config)
  for role, other in itertools.combinations(roles, 2):
    if roles[role] == roles[other]:
      raise checks.not_allowed(
        f'config.data.{other}_column',
        roles[other],
        f'another column than config.data.{role}_column',
      )


def _event_columns(data_config: ml_collections.ConfigDict) -> dict[str, str]:
  """Column names or positions of an event's three roles, as configured."""
  return {role: data_config[f'{role}_column'] for role in EVENT_ROLES}


def _date(seconds: int) -> str:
  moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
  return moment.date().isoformat()
