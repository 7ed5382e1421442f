"""From columns to a RawLog: bad rows, item tables, counts."""

import datetime
import os
from typing import Any
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import values
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog

TEXTS = ('title', 'category', 'brand')


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


class Items(NamedTuple):
  """An item table: str[table] each, and what was counted."""

  item_ids: np.ndarray
  titles: np.ndarray
  categories: np.ndarray
  brands: np.ndarray
  counts: dict[str, int]


def no_items() -> Items:
  """The table of a log without one."""
  empty = np.array([], object)
  return Items(empty, empty, empty, empty, {})


def good_rows(
  columns: columns_by_role.Columns,
  problems: list[tuple[str, str, np.ndarray, str]],
  bad_rows: str,
) -> tuple[np.ndarray, dict[str, int]]:
  """Stops at, or drops and counts, bad rows (SPEC 2.2).

  Args:
    columns: the rows.
    problems: (role, what is wrong, bool[rows], what is allowed).
    bad_rows: 'error' or 'drop'.

  Returns:
    i64[good], the good rows, and the rows dropped by their first problem.

  Raises:
    InputError: with `bad_rows='error'`, at the file's first bad row.
  """
  bad = np.zeros(columns.table.num_rows, bool)
  counts = {}
  for role, what, mask, _ in problems:
    count = int((mask & ~bad).sum())
    if count:
      counts[f'dropped: {role} {what}'] = count
    bad |= mask
  if bad_rows == 'error' and bad.any():
    row = int(bad.argmax())
    role, what, _, allowed = next(p for p in problems if p[2][row])
    raise InputError(
      f'{columns.place(row, role)} {what}; allowed: {allowed} '
      "(data.bad_rows='drop' drops such rows)"
    )
  return np.flatnonzero(~bad), counts


def events(
  columns: columns_by_role.Columns,
  data_config: Any,
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
    users, no_user = values.ids(columns.table['user'])
    items, no_item = values.ids(columns.table['item'])
    times = values.times(
      columns.table['time'] if time_column is None else time_column,
      data_config.time_unit,
      place,
    )
  problems = [
    ('user', 'is missing', no_user, 'any non-empty id'),
    ('item', 'is missing', no_item, 'any non-empty id'),
  ]
  unit = (
    'ISO 8601 text or dates'
    if times.unit == 'iso'
    else f'whole or decimal unix {times.unit} from 1970 to 2100'
  )
  problems += [
    ('time', what, mask, f'{unit}, as in the rest of the column')
    for what, mask in times.problems.items()
  ]
  kept, counts = good_rows(columns, problems, data_config.bad_rows)
  if not len(kept):
    raise columns.file.error(f'has no good row; dropped: {counts}')
  seconds = times.seconds[kept]
  span = f'{_date(seconds.min())} to {_date(seconds.max())}'
  return Events(
    users[kept],
    items[kept],
    seconds,
    kept,
    counts,
    f'time unit {times.unit}, {span}',
  )


def item_table(columns: columns_by_role.Columns, bad_rows: str) -> Items:
  """The item table of the columns `item`, `title`, `category`, `brand`.

  A text column may be absent. Of several rows of an item the first stands.

  Raises:
    InputError: at the first row without an item id, if not dropped.
  """
  with file_formats.reading(columns.file):
    names, no_item = values.ids(columns.table['item'])
    texts = {
      role: values.texts(columns.table[role])
      for role in TEXTS
      if role in columns.names
    }
  kept, counts = good_rows(
    columns, [('item', 'is missing', no_item, 'any non-empty id')], bad_rows
  )
  kept, repeated = first_of_each(names, kept)
  counts = {
    'item table: rows read': columns.table.num_rows,
    **{f'item table: {key}': count for key, count in counts.items()},
  }
  if repeated:
    counts['item table: repeated ids dropped'] = repeated
  lacking = np.full(len(names), '', object)
  return Items(
    names[kept], *(texts.get(role, lacking)[kept] for role in TEXTS), counts
  )


def first_of_each(
  names: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, int]:
  """The first of `rows` with each name, in order, and how many it leaves."""
  _, first = np.unique(encode(names[rows])[0], return_index=True)
  return rows[np.sort(first)], len(rows) - len(first)


def encode(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Numbers strings in order of first appearance.

  Returns:
    i64[rows], and the distinct strings, str[distinct].
  """
  encoded = pa.array(names, pa.large_string()).dictionary_encode()
  distinct = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
  return encoded.indices.to_numpy().astype(np.int64), distinct


def raw_log(
  log: Events, items: Items, counts: dict[str, int], source: str
) -> RawLog:
  """Puts a log and its item table together and counts what has no text."""
  counts = {
    **counts,
    **log.counts,
    'events read': len(log.users),
    **items.counts,
  }
  if len(items.item_ids):
    bought = encode(log.items)[1]
    known = pa.compute.is_in(
      pa.array(bought, pa.large_string()),
      pa.array(items.item_ids, pa.large_string()),
    )
    counts['items of the log that the item table lacks'] = (
      len(bought) - known.true_count
    )
    for role, text in zip(TEXTS, items[1:4]):
      counts[f'item table: items without a {role}'] = int((text == '').sum())
  return RawLog(
    log.users,
    log.items,
    log.times,
    *items[:4],
    counts,
    f'{source} ({log.unit})',
  )


def name(path: str) -> str:
  """The file's name for reports: the data set stays valid if it is moved."""
  return os.path.basename(path)


def _date(seconds: int) -> str:
  moment = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
  return moment.date().isoformat()
