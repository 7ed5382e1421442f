"""Columns of a file by role (user, item, time, ...), whatever its format.

A reader asks for columns by role and gets an Arrow table with one column a
role. Messages name the file, row, column and value of a cell.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Columns:
  """What was read of a file.

  Attributes:
    file: the file.
    table: one column a role; an optional column that is absent is left out.
    names: role -> the column's name in the file.
    rows: i64[rows], a row's position in the file, from 0.
    counts: rows read, malformed lines, rows left out by `where`.
  """

  file: source_files.File
  table: pa.Table
  names: dict[str, str]
  rows: np.ndarray
  counts: dict[str, int]

  def describe_cell(self, row: int, role: str) -> str:
    """Names file, row, column and value of one cell, for messages."""
    number = int(self.rows[row])
    line = file_formats.line_of(self.file, number)
    at_line = '' if line is None else f' (line {line})'
    cell = self.table[role][row]
    try:
      value = cell.as_py()
    except file_formats.READ_ERRORS:  # such as a time beyond Python's years
      value = cell.value
    return (
      f'{self.file.field}: {self.file.path}: row {number + 1}{at_line}, '
      f'column {self.names[role]!r}: '
      f'value {value!r}'
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


def read_columns(
  file: source_files.File,
  wanted: Mapping[str, str | int],
  optional: Sequence[str] = (),
  where: Mapping[str, Any] | None = None,
) -> Columns:
  """Reads columns by role (SPEC 2.1).

  Args:
    file: what to read.
    wanted: role -> column name, or position from 0: an integer, or digits
      that are no column's name.
    optional: roles that may have no column in the file.
    where: column -> value or values to keep, compared as text.

  Returns:
    The columns, of the rows that `where` keeps.

  Raises:
    InputError: if the file cannot be read, has no rows, lacks a column, or no
      row is left.
  """
  there = file_formats.column_names(file)
  names = {
    role: _resolve(file, column, there)
    for role, column in wanted.items()
    if role not in optional or _position(file, column, there) is not None
  }
  filters = {
    _resolve(file, column, there): value
    for column, value in (where or {}).items()
  }

  needed = list(dict.fromkeys([*names.values(), *filters]))
  table, malformed = file_formats.read(file, needed)
  if not table.num_rows:
    raise file.error('has no rows; at least one is needed')
  counts = {'rows read': table.num_rows + malformed}
  if malformed:
    counts['malformed lines dropped'] = malformed

  keep = _where(file, table, filters)
  rows = np.flatnonzero(keep)
  if filters:
    counts['rows left out by data.where'] = table.num_rows - len(rows)
    table = table.filter(pa.array(keep))
  by_role = pa.table({role: table[name] for role, name in names.items()})
  return Columns(
    file=file, table=by_role, names=names, rows=rows, counts=counts
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


def _headless(file: source_files.File) -> bool:
  """Whether columns have positions instead of names."""
  return file.kind == 'csv' and not file.header


def _position(
  file: source_files.File, column: str | int, there: list[str]
) -> int | None:
  """Where a configured column is among those of the file, None if nowhere.

  Raises:
    InputError: if two columns have that name.
  """
  if isinstance(column, int) or (
    column.isdecimal()
    and column.isascii()
    and (_headless(file) or column not in there)
  ):
    return int(column) if int(column) < len(there) else None
  if there.count(column) > 1:
    raise file.error(f'has more than one column {column!r}; names must differ')
  return None if _headless(file) or column not in there else there.index(column)


def _resolve(
  file: source_files.File, column: str | int, there: list[str]
) -> str:
  """The name in the file of a configured column, which must be there."""
  position = _position(file, column, there)
  if position is not None:
    return there[position]
  allowed = (
    f'positions 0 to {len(there) - 1}, as it has no header'
    if _headless(file)
    else ', '.join(map(repr, there))
  )
  raise file.error(f'has no column {column!r}; there are: {allowed}')


def _where(
  file: source_files.File, table: pa.Table, filters: dict[str, Any]
) -> np.ndarray:
  """Which rows have the wanted values, bool[rows]."""
  keep = np.ones(table.num_rows, bool)
  for name, wanted in filters.items():
    listed = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    # Arrow writes booleans in lower case.
    listed = [str(v).lower() if isinstance(v, bool) else str(v) for v in listed]
    text = text_columns.as_text(table[name])
    if pa.types.is_dictionary(text.type):
      text = text.dictionary_decode()
    keep &= pc.is_in(text, pa.array(listed, text.type)).to_numpy(
      zero_copy_only=False
    )
    if not keep.any():
      found = pc.unique(text).slice(0, 10).to_pylist()
      raise file.error(
        f'config.data.where: no row is left by column {name!r} in {listed}; '
        f'its values start with {found}'
      )
  return keep
