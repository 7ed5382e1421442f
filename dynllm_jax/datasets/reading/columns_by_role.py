"""Columns of a file by role, whatever its format.

A reader asks for columns by role and gets an Arrow table with one column a
role; messages name the file, row, column and value of a cell.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import values


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

  def place(self, row: int, role: str) -> str:
    """Names file, row, column and value of one cell."""
    number = int(self.rows[row])
    line = file_formats.line_of(self.file, number)
    line = '' if line is None else f' (line {line})'
    cell = self.table[role][row]
    try:
      value = cell.as_py()
    except file_formats.READ_ERRORS:  # such as a time beyond Python's years
      value = cell.value
    return (
      f'{self.file.field}: {self.file.path}: row {number + 1}{line}, '
      f'column {self.names[role]!r}: '
      f'value {value!r}'
    )


def read_columns(
  file: source_files.File,
  wanted: Mapping[str, str | int],
  optional: tuple[str, ...] = (),
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
  names = {}
  for role, column in wanted.items():
    name = _resolve(file, column, there, role in optional)
    if name is not None:
      names[role] = name
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
  return Columns(
    file,
    pa.table({role: table[name] for role, name in names.items()}),
    names,
    rows,
    counts,
  )


def _resolve(
  file: source_files.File,
  column: str | int,
  there: list[str],
  optional: bool = False,
) -> str | None:
  """The name of a configured column."""
  headless = file.kind == 'csv' and not file.header
  if isinstance(column, int) or (
    column.isdecimal()
    and column.isascii()
    and (headless or column not in there)
  ):
    if int(column) < len(there):
      return there[int(column)]
  elif there.count(column) > 1:
    raise file.error(f'has more than one column {column!r}; names must differ')
  elif column in there and not headless:
    return column
  if optional:
    return None
  allowed = (
    f'positions 0 to {len(there) - 1}, as it has no header'
    if headless
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
    text = values.as_text(table[name])
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
