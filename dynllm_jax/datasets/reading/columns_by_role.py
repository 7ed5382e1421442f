"""Columns of a file by role (user, item, time, ...), whatever its format.

A reader asks for columns by role and gets an Arrow table with one column a
role. Messages name the file, row, column and value of a cell.
"""

import bisect
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dynllm_jax import checks
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import row_filters
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.datasets.reading import time_columns
from dynllm_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Columns:
  """What was read of one file, or of several with the same columns.

  Attributes:
    files: the files.
    starts: the row of the table's source, from 0, at which each file begins.
    table: one column a role; a role that no column has is left out.
    names: role -> the column's name in the first file.
    names_by_file: likewise of each file.
    rows: i64[rows], a row's position among the rows of all files, from 0.
    counts: rows read, malformed lines, rows left out by `where`.
  """

  files: tuple[source_files.File, ...]
  starts: tuple[int, ...]
  table: pa.Table
  names: dict[str, str]
  names_by_file: tuple[dict[str, str], ...]
  rows: np.ndarray
  counts: dict[str, int]

  @property
  def file(self) -> source_files.File:
    """The first file, for messages about all of them."""
    return self.files[0]

  def describe_cell(self, row: int, role: str) -> str:
    """Names file, row, column and value of one cell, for messages."""
    number = int(self.rows[row])
    part = bisect.bisect_right(self.starts, number) - 1
    file, number = self.files[part], number - self.starts[part]
    line = file_formats.line_of(file, number)
    at_line = '' if line is None else f' (line {line})'
    cell = self.table[role][row]
    try:
      value = cell.as_py()
    except file_formats.READ_ERRORS:  # such as a time beyond Python's years
      value = cell.value
    return (
      f'{file.field}: {file.path}: row {number + 1}{at_line}, '
      f'column {self.names[role]!r}: '
      f'value {checks.shown(value)}'
    )


class Problem(NamedTuple):
  """One thing that is wrong with some rows.

  Attributes:
    role: of the column that has the bad cells.
    what: what is wrong, in words that follow the cell's value in a message.
    bad: bool[rows], the rows concerned.
    allowed: what would have been allowed, in words.
  """

  role: str
  what: str
  bad: np.ndarray
  allowed: str


def id_problems(role: str, ids: text_columns.Ids) -> list[Problem]:
  """What may be wrong with ids."""
  return [
    Problem(role, 'is missing', ids.missing, 'any non-empty id'),
    Problem(
      role,
      'is a number that lost its last digits',
      ids.rounded,
      'ids in full, written as text or as whole numbers',
    ),
    Problem(
      role,
      'has half a character, or what stands for one',
      ids.cut,
      'ids in full',
    ),
  ]


# A column's name; its position from 0, an integer or digits; or several names,
# of which the first that a file has is meant, if it has any.
Wanted = str | int | tuple[str, ...]


def read_columns(
  files: source_files.File | Sequence[source_files.File],
  wanted: Mapping[str, Wanted],
  where: Mapping[str, Any] | None = None,
  fields: Mapping[str, str] | None = None,
) -> Columns:
  """Reads columns by role (SPEC 2.1).

  Args:
    files: what to read, one after the other.
    wanted: role -> column. A position is never looked up as a name.
    where: column -> what a row's cell must be to be kept (row_filters.py).
    fields: role -> the configuration's field that names its column, for
      messages.

  Returns:
    The columns, of the rows that `where` keeps.

  Raises:
    InputError: if a file cannot be read, lacks a column that is asked for by
      one name or by position, or has two of that name; if there are no rows, or
      none is left.
  """
  if isinstance(files, source_files.File):
    files = [files]
  filters = dict(where or {})
  parts = [_read_part(file, wanted, filters, fields or {}) for file in files]
  sizes = [part.table.num_rows for part in parts]
  starts = tuple(int(start) for start in np.cumsum([0, *sizes[:-1]]))
  table = _concatenate([part.table for part in parts])
  if not table.num_rows:
    raise files[0].error('has no rows; at least one is needed')

  malformed = sum(part.malformed for part in parts)
  counts = {'rows read': table.num_rows + malformed}
  if malformed:
    counts['malformed lines dropped'] = malformed
  keep = np.concatenate([part.keep for part in parts])
  rows = np.flatnonzero(keep)
  if filters:
    if not len(rows):
      raise _nothing_left(files[0], parts, filters)
    counts['rows left out by data.where'] = len(keep) - len(rows)
    table = table.filter(pa.array(keep))
  return Columns(
    files=tuple(files),
    starts=starts,
    table=table,
    names=parts[0].names,
    names_by_file=tuple(part.names for part in parts),
    rows=rows,
    counts=counts,
  )


class _Part(NamedTuple):
  """What was read of one file: `keep` are the rows that filters keep, and
  `examples` values of their columns.
  """

  table: pa.Table
  names: dict[str, str]
  malformed: int
  keep: np.ndarray
  examples: dict[str, list[str]]


def _read_part(
  file: source_files.File,
  wanted: Mapping[str, Wanted],
  filters: Mapping[str, Any],
  fields: Mapping[str, str],
) -> _Part:
  """The columns of one file, and which of its rows the filters keep."""
  looked_for = [
    column if isinstance(column, tuple) else (str(column),)
    for column in [*wanted.values(), *filters]
    if position(column) is None
  ]
  there = file_formats.column_names(file, looked_for)
  found = {
    role: _find(file, column, there, fields.get(role, ''))
    for role, column in wanted.items()
  }
  roles = {role: at for role, at in found.items() if at is not None}
  filtered = {column: _resolve(file, column, there) for column in filters}

  needed = list(dict.fromkeys([*roles.values(), *filtered.values()]))
  table, malformed = file_formats.read(file, there, needed)
  keep = np.ones(table.num_rows, bool)
  examples = {}
  with file_formats.reading(file):
    for column, at in filtered.items():
      cells = table[needed.index(at)]
      examples[column] = row_filters.examples(cells)
      keep &= row_filters.keeps(cells, filters[column])
  return _Part(
    pa.table({role: table[needed.index(at)] for role, at in roles.items()}),
    {role: there[at] for role, at in roles.items()},
    malformed,
    keep,
    examples,
  )


def _concatenate(tables: Sequence[pa.Table]) -> pa.Table:
  """Rows of several tables; a column of several types becomes text.

  A role that a table lacks is null there.
  """
  roles = list(dict.fromkeys(r for table in tables for r in table.column_names))
  columns = {}
  for role in roles:
    parts = [
      table[role]
      if role in table.column_names
      else pa.chunked_array([pa.nulls(table.num_rows)])
      for table in tables
    ]
    kinds = {part.type for part in parts if part.null_count < len(part)}
    if len(kinds) > 1 or any(pa.types.is_dictionary(kind) for kind in kinds):
      # Not by promotion: as a float, a long number would lose its last digits.
      kind = pa.dictionary(pa.int32(), pa.string())
      parts = (
        [
          pa.chunked_array([_dictionary(text_columns.as_text(part))], kind)
          for part in parts
        ]
        if len(tables) > 1
        else parts
      )
    elif kinds:
      (kind,) = kinds
      parts = [
        part
        if part.type == kind
        else pa.chunked_array([pa.nulls(len(part), kind)])
        for part in parts
      ]
    chunks = [chunk for part in parts for chunk in part.chunks]
    columns[role] = pa.chunked_array(chunks, None if chunks else parts[0].type)
  return pa.table(columns)


def _dictionary(text: pa.Array) -> pa.Array:
  """Text as a dictionary of the one type that all parts have."""
  if not pa.types.is_dictionary(text.type):
    text = text.cast(pa.string()).dictionary_encode()
  return pa.DictionaryArray.from_arrays(
    text.indices.cast(pa.int32()), text.dictionary.cast(pa.string())
  )


def good_rows(
  columns: Columns, problems: Sequence[Problem], bad_rows: str
) -> tuple[np.ndarray, dict[str, int]]:
  """Stops at the first bad row, or drops and counts bad rows (SPEC 2.2).

  Args:
    columns: the rows.
    problems: what is wrong with which of them.
    bad_rows: 'error' or 'drop'.

  Returns:
    i64[good], the good rows, and the rows dropped by their first problem.

  Raises:
    InputError: with `bad_rows='error'`, at the file's first bad row.
  """
  bad = np.zeros(columns.table.num_rows, bool)
  counts = {}
  for problem in problems:
    count = int((problem.bad & ~bad).sum())
    if count:
      counts[f'dropped: {problem.role} {problem.what}'] = count
    bad |= problem.bad

  if bad_rows == 'error' and bad.any():
    row = int(bad.argmax())
    first = next(problem for problem in problems if problem.bad[row])
    raise InputError(
      f'{columns.describe_cell(row, first.role)} {first.what}; allowed: '
      f"{first.allowed} (config.data.bad_rows='drop' drops such rows)"
    )
  return np.flatnonzero(~bad), counts


def position(column: Wanted) -> int | None:
  """The position by which a column is given, never a name."""
  if isinstance(column, int):
    return column
  if isinstance(column, str) and column.isdecimal() and column.isascii():
    return int(column)
  return None


def _find(
  file: source_files.File, column: Wanted, there: list[str], field: str
) -> int | None:
  """Where a column is; None where no one of several names is there."""
  if not isinstance(column, tuple):
    return _resolve(file, column, there, field)
  name = next((name for name in column if name in there), None)
  return None if name is None else _resolve(file, name, there)


def _resolve(
  file: source_files.File, column: str | int, there: list[str], field: str = ''
) -> int:
  """The position of a column, which must be there once; `field` names it."""
  place = position(column)
  if place is not None:
    if place < len(there):
      return place
  elif there.count(str(column)) == 1:
    return there.index(str(column))
  elif column in there:
    places = [at for at, name in enumerate(there) if name == column]
    raise file.error(
      f'has more than one column {column!r}; allowed: a name that one column '
      f'has, or one of the positions {", ".join(map(str, places))}'
    )

  by_position = f'positions 0 to {len(there) - 1}' if there else 'none'
  allowed = (
    ', '.join(map(checks.shown, there)) + f', or {by_position}'
    if file.has_header or file.names
    else f'{by_position}, as it has no header'
  )
  hint = f'; {field} chooses one' if field else ''
  if file.kind in ('csv', 'xlsx') and file.header:
    field = 'items_header' if file.field.endswith('items') else 'header'
    looks = any(map(time_columns.is_time, there))
    if looks or field == 'items_header':
      hint += (
        f'; {"its first line looks like a row: " if looks else ""}a file '
        f'without a header needs config.data.{field}=False, and positions of '
        'columns'
      )
  raise file.error(f'has no column {column!r}; there are: {allowed}{hint}')


def _nothing_left(
  file: source_files.File, parts: Sequence[_Part], filters: Mapping[str, Any]
) -> InputError:
  """The error where filters leave no row, with what the columns hold."""
  found = {column: parts[0].examples[column] for column in filters}
  return file.error(
    f'config.data.where: no row is left by {dict(filters)}; values start with '
    + ', '.join(f'{column!r}: {values}' for column, values in found.items())
  )
