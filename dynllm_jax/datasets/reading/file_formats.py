"""File formats: a file's columns, and some of them as an Arrow table."""

import ast
from collections.abc import Generator
from collections.abc import Iterator
import contextlib
import csv
import gzip
import itertools
import json
from typing import Any
import xml.etree.ElementTree
import zipfile
import zlib

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from dynllm_jax.datasets.reading import delimited
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError

# Rows of a JSON file that are looked at to learn its keys and their types.
_PEEK = 1000
_BLOCK = 1 << 24  # bytes; an object longer than this is pyarrow's error
# What pyarrow, gzip, csv and openpyxl raise on a file that is not what its
# name says.
READ_ERRORS = (
  pa.ArrowException,
  OSError,
  EOFError,
  ValueError,
  csv.Error,
  zlib.error,
  zipfile.BadZipFile,
  LookupError,
  TypeError,
  ArithmeticError,
  RecursionError,
  StopIteration,
  xml.etree.ElementTree.ParseError,
)


@contextlib.contextmanager
def reading(file: source_files.File) -> Iterator[None]:
  """Turns whatever is wrong with a file's content into an InputError."""
  try:
    yield
  except InputError:
    raise
  except READ_ERRORS as error:
    raise _unreadable(file, error) from error


def column_names(file: source_files.File) -> list[str]:
  """The names of a file's columns; f0, f1, ... where it has no header.

  Raises:
    InputError: if the file cannot be read.
  """
  with reading(file):
    if file.kind == 'parquet':
      return pa.parquet.ParquetFile(file.path).schema_arrow.names
    if file.kind == 'json':
      head = itertools.islice(_objects(file), _PEEK)
      return list(dict.fromkeys(key for row in head for key in row))
    if file.kind == 'xlsx':
      with contextlib.closing(_sheets(file)) as sheets:
        _, rows = next(sheets)
        return [str(cell) for cell in next(rows, ())]
    _, first = next(delimited.records(file), (0, []))
  return first if file.header else [f'f{i}' for i in range(len(first))]


def read(file: source_files.File, needed: list[str]) -> tuple[pa.Table, int]:
  """Reads the named columns.

  Returns:
    The table, and how many malformed lines were left out.

  Raises:
    InputError: if the file cannot be read.
  """
  with reading(file):
    return _READERS[file.kind](file, needed)


def _unreadable(file: source_files.File, error: Exception) -> InputError:
  """The error about a file's content; it names a line that is not UTF-8."""
  if not isinstance(error, UnicodeError):
    return file.error(f'cannot be read: {error}')
  opener = gzip.open if file.path.lower().endswith('.gz') else open
  with opener(file.path, 'rb') as stream:
    for number, line in enumerate(stream, 1):
      try:
        line.decode()
      except UnicodeDecodeError as place:
        return file.error(
          f'line {number}: value {line[place.start : place.start + 20]!r} is '
          'not UTF-8, the encoding that is allowed'
        )
  return file.error(f'cannot be read: {error}')


def line_of(file: source_files.File, row: int) -> int | None:
  """The line on which a data row (from 0) starts; None if that is unknown."""
  # Where lines cannot be counted, the number of the row must do.
  with contextlib.suppress(*READ_ERRORS):
    if file.kind == 'json':
      with source_files.open_text(file, 'utf8') as stream:
        lines = (i for i, text in enumerate(stream, 1) if text.strip())
        return next(itertools.islice(lines, row, None))
    if file.kind == 'csv':
      rows = itertools.islice(delimited.records(file), row + file.header, None)
      return next(rows)[0]
  return None


def _read_parquet(
  file: source_files.File, needed: list[str]
) -> tuple[pa.Table, int]:
  return pa.parquet.ParquetFile(file.path).read(columns=needed), 0


def _read_json(
  file: source_files.File, needed: list[str]
) -> tuple[pa.Table, int]:
  head = list(itertools.islice(_objects(file), _PEEK))
  types = {name: _json_type([row.get(name) for row in head]) for name in needed}
  if all(type_ is not None for type_ in types.values()):
    try:
      with pa.input_stream(file.path) as stream:
        table = pa.json.read_json(
          stream,
          pa.json.ReadOptions(block_size=_BLOCK),
          pa.json.ParseOptions(
            explicit_schema=pa.schema(types), unexpected_field_behavior='ignore'
          ),
        )
      return table.select(needed), 0
    except pa.ArrowInvalid:
      pass  # Mixed types or a line that is no object: row by row, as text.

  cells: dict[str, list[str | None]] = {name: [] for name in needed}
  malformed = [0]
  for row in _objects(file, malformed):
    for name in needed:
      cells[name].append(text_columns.python_text(row.get(name)))
  return pa.table(
    {name: pa.array(column, pa.string()) for name, column in cells.items()}
  ), malformed[0]


def _json_type(sample: list[Any]) -> pa.DataType | None:
  """The Arrow type of the values, None where one type does not hold them."""
  kinds = {type(value) for value in sample if value is not None}
  if kinds == {list}:
    nested = any(isinstance(x, list) for value in sample for x in value or ())
    return None if nested else pa.list_(pa.string())
  return {
    frozenset(): pa.string(),
    frozenset([str]): pa.string(),
    frozenset([int]): pa.int64(),
    frozenset([bool]): pa.bool_(),
    frozenset([float]): pa.float64(),  # None for ints among floats
  }.get(frozenset(kinds))


def _objects(
  file: source_files.File, malformed: list[int] | None = None
) -> Iterator[dict[str, Any]]:
  """The objects of a JSON lines file, one by one."""
  with source_files.open_text(file, 'utf8') as stream:
    for line, text in enumerate(stream, 1):
      if not text.strip():
        continue
      row = _parse_object(text)
      if isinstance(row, dict):
        yield row
      elif not file.skip_malformed:
        raise file.error(
          f'line {line}: {text.strip()[:60]!r} is not a JSON object; '
          'a file must have one object a line'
        )
      elif malformed is not None:
        malformed[0] += 1


def _sheets(
  file: source_files.File,
) -> Generator[tuple[str, Iterator[tuple[Any, ...]]], None, None]:
  """(name, rows of cells) of every sheet of a workbook."""
  import openpyxl  # Only workbooks need it.

  book = openpyxl.load_workbook(file.path, read_only=True, data_only=True)
  try:
    for sheet in book.worksheets:
      yield sheet.title, sheet.iter_rows(values_only=True)
  finally:
    book.close()


def _read_xlsx(
  file: source_files.File, needed: list[str]
) -> tuple[pa.Table, int]:
  cells: list[list[str | None]] = [[] for _ in needed]
  for name, rows in _sheets(file):
    header = [str(cell) for cell in next(rows, ())]
    lacking = [column for column in needed if column not in header]
    if lacking:
      raise file.error(
        f'sheet {name!r} has no column {lacking[0]!r}; '
        f'there are: {", ".join(map(repr, header))}'
      )
    places = [header.index(column) for column in needed]
    for row in rows:
      if any(cell is not None for cell in row):
        for column, place in zip(cells, places):
          # A row ends with its last filled cell.
          cell = row[place] if place < len(row) else None
          column.append(text_columns.python_text(cell))
  return pa.table([pa.array(c, pa.string()) for c in cells], needed), 0


def _parse_object(text: str) -> Any:
  """What a line holds; None if it is neither JSON nor a Python literal."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):  # also for a number of too many digits
    pass
  try:
    # The Amazon metadata of 2014 are Python literals: {'asin': '0001', ...}.
    return ast.literal_eval(text.strip())
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return None


_READERS = {
  'csv': delimited.read,
  'parquet': _read_parquet,
  'json': _read_json,
  'xlsx': _read_xlsx,
}
