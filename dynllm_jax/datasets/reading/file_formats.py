"""File formats: a file's columns, and some of them as an Arrow table."""

import ast
from collections.abc import Collection
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import csv
import gzip
import io
import itertools
import json
from typing import Any
import xml.etree.ElementTree
import zipfile
import zlib

import pyarrow as pa
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from dynllm_jax import checks
from dynllm_jax.datasets.reading import delimited
from dynllm_jax.datasets.reading import source_files
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError

# Rows of a JSON file that are looked at to learn its keys and their types.
_PEEK = 1000
_BLOCK = 1 << 24  # bytes that are parsed at once, and a JSON object must fit in
_LARGEST_BLOCK = (1 << 31) - 1
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


def column_names(
  file: source_files.File, wanted: Collection[Collection[str]] = ()
) -> list[str]:
  """The names of a file's columns, also where several are alike.

  They are f0, f1, ... where it has no header. Folders `name=value` that the
  file is in are its last columns. The keys of JSON objects are columns in the
  order in which they first appear.

  Args:
    file: the file.
    wanted: names that are looked for, each with those that do in its place.
      Objects of a JSON file are read until one of each was there, as a key may
      come first in the last object.

  Raises:
    InputError: if the file cannot be read.
  """
  with reading(file):
    return [*_own_names(file, wanted), *(name for name, _ in file.folders)]


def read(
  file: source_files.File, there: Sequence[str], needed: Sequence[int]
) -> tuple[pa.Table, int]:
  """Reads columns.

  Args:
    file: what to read.
    there: its `column_names`.
    needed: positions among them, each once.

  Returns:
    The columns, each named by its position, and how many malformed lines were
    left out.

  Raises:
    InputError: if the file cannot be read.
  """
  width = len(there) - len(file.folders)
  own = [position for position in needed if position < width]
  with reading(file):
    # Where folders alone are asked for, a column tells how many rows there are.
    table, malformed = _READERS[file.kind](file, there[:width], own or [0])
    columns = dict(zip(own, table.columns))
    for position in needed:
      if position >= width:
        _, value = file.folders[position - width]
        columns[position] = pa.chunked_array([[value] * table.num_rows])
    return (
      pa.table({str(at): text_columns.plain(columns[at]) for at in needed}),
      malformed,
    )


def reading_by_name(file: source_files.File) -> list[Any]:
  """How a file is read as its name says, and not its content.

  Files of one content are one log, whatever they are called, where these agree.

  Raises:
    InputError: if the file cannot be read.
  """
  with reading(file):
    between = delimited.delimiter(file) if file.kind == 'csv' else ''
  return [file.kind, between, list(file.names), list(map(list, file.folders))]


def _own_names(
  file: source_files.File, wanted: Collection[Collection[str]]
) -> list[str]:
  """Names of the columns in the file itself."""
  if file.kind == 'parquet':
    return pa.parquet.ParquetFile(file.path).schema_arrow.names
  if file.kind == 'feather':
    with _open_feather(file) as reader:
      return reader.schema.names
  if file.kind == 'json':
    return _keys(file, wanted)
  if file.kind == 'xlsx':
    with contextlib.closing(_sheets(file)) as sheets:
      _, rows = next(sheets)
      return _sheet_names(file, next(rows, ()))
  return delimited.column_names(file)


def _keys(
  file: source_files.File, wanted: Collection[Collection[str]]
) -> list[str]:
  """The keys of a JSON file's objects, at least until all wanted are found."""
  keys: dict[str, None] = {}
  missing = list(wanted)
  for number, row in enumerate(_objects(file)):
    if number >= _PEEK and not missing:
      break
    if not row.keys() <= keys.keys():
      keys.update(dict.fromkeys(row))
      missing = [names for names in missing if keys.keys().isdisjoint(names)]
  return list(keys)


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
          'not UTF-8, the encoding that is allowed; another needs '
          "config.data.encoding, as 'latin1'"
        )
  return file.error(f'cannot be read: {error}')


def line_of(file: source_files.File, row: int) -> int | None:
  """The line on which a data row (from 0) starts; None if that is unknown."""
  # Where lines cannot be counted, the number of the row must do.
  with contextlib.suppress(*READ_ERRORS):
    if file.kind == 'json':
      with source_files.open_text(file, file.encodings[0]) as stream:
        if stream.read(_PEEK).lstrip()[:1] == '[':
          return None
        stream.seek(0)
        lines = (i for i, text in enumerate(stream, 1) if text.strip())
        return next(itertools.islice(lines, row, None))
    if file.kind == 'csv':
      rows = itertools.islice(delimited.records(file), row + file.header, None)
      return next(rows)[0]
  return None


def _read_parquet(
  file: source_files.File, there: Sequence[str], needed: list[int]
) -> tuple[pa.Table, int]:
  parquet = pa.parquet.ParquetFile(file.path)
  # Columns can be chosen by name alone, and a name may also stand for those
  # that are nested in it.
  alike = len(set(there)) < len(there) or any('.' in name for name in there)
  chosen = None if alike else [there[position] for position in needed]
  if file.first_rows:
    batches = parquet.iter_batches(file.first_rows, columns=chosen)
    first = next(batches, None)
    table = (
      parquet.schema_arrow.empty_table()
      if first is None
      else pa.Table.from_batches([first])
    )
  else:
    table = parquet.read(columns=chosen)
  at = needed if alike else [table.column_names.index(n) for n in chosen or ()]
  return table.select(at), 0


@contextlib.contextmanager
def _open_feather(file: source_files.File) -> Iterator[Any]:
  """A reader of an Arrow file, or of an Arrow stream."""
  with pa.memory_map(file.path) as stream:
    try:
      yield pa.ipc.open_file(stream)
      return
    except pa.ArrowInvalid:
      stream.seek(0)
    yield pa.ipc.open_stream(stream)


def _read_feather(
  file: source_files.File, there: Sequence[str], needed: list[int]
) -> tuple[pa.Table, int]:
  del there
  with _open_feather(file) as reader:
    table = reader.read_all()
  return table.slice(0, file.first_rows or None).select(needed), 0


def _read_json(
  file: source_files.File, there: Sequence[str], needed: list[int]
) -> tuple[pa.Table, int]:
  names = [there[position] for position in needed]
  head = list(itertools.islice(_objects(file), file.first_rows or _PEEK))
  types = {name: _json_type([row.get(name) for row in head]) for name in names}
  utf8 = source_files.is_utf8(file.encodings[0])
  if not file.first_rows and utf8 and None not in types.values():
    try:
      return _read_json_at_once(file, types).select(names), 0
    except pa.ArrowInvalid:
      pass  # Mixed types, no object, or half a character: row by row, as text.

  malformed = [0]
  cells: list[list[str | None]] = [[] for _ in names]
  for row in head if file.first_rows else _objects(file, malformed):
    for name, column in zip(names, cells):
      column.append(text_columns.python_text(row.get(name)))
  columns = [pa.array(column, pa.string()) for column in cells]
  return pa.table(columns, names), malformed[0]


def _read_json_at_once(
  file: source_files.File, types: dict[str, pa.DataType]
) -> pa.Table:
  """Columns of known types, by pyarrow."""
  block = _BLOCK
  while True:
    try:
      with pa.input_stream(file.path) as stream:
        return pa.json.read_json(
          stream,
          pa.json.ReadOptions(block_size=block),
          pa.json.ParseOptions(
            explicit_schema=pa.schema(types), unexpected_field_behavior='ignore'
          ),
        )
    except pa.ArrowInvalid as error:
      if 'straddl' not in str(error) or block == _LARGEST_BLOCK:
        raise
      block = min(16 * block, _LARGEST_BLOCK)


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
  """The objects of a JSON file, one a line or all in one array."""
  with source_files.open_text(file, file.encodings[0]) as stream:
    if stream.read(_PEEK).lstrip()[:1] == '[':
      stream.seek(0)
      yield from _array(file, stream)
      return
    stream.seek(0)
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


def _array(
  file: source_files.File, stream: io.TextIOBase
) -> Iterator[dict[str, Any]]:
  """The objects of a JSON array, which is read as a whole."""
  try:
    rows = json.load(stream)
  except (ValueError, RecursionError) as error:
    raise file.error(
      f'line 1: {error}; a file that starts with [ is not a JSON object a '
      'line, and must be one array of objects'
    ) from error
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise file.error(
        f'line 1: element {number} of the array, {checks.shown(row)}, is not a '
        'JSON object'
      )
    yield {text_columns.encodable(key): row[key] for key in row}


def _sheets(
  file: source_files.File,
) -> Generator[tuple[str, Iterator[tuple[Any, ...]]], None, None]:
  """(name, rows of cells) of every sheet of a workbook."""
  try:
    import openpyxl  # Only workbooks need it.
  except ImportError as error:
    raise file.error(
      'a workbook is read by openpyxl, which is not installed; allowed: '
      "pip install 'dynllm_jax[excel]', or the sheet as CSV"
    ) from error

  book = openpyxl.load_workbook(file.path, read_only=True, data_only=True)
  try:
    for sheet in book.worksheets:
      yield sheet.title, sheet.iter_rows(values_only=True)
  finally:
    book.close()


def _sheet_names(file: source_files.File, first: tuple[Any, ...]) -> list[str]:
  """Names of a sheet's columns, by its first row; '' for an empty cell."""
  if not file.header:
    return [f'f{position}' for position in range(len(first))]
  return ['' if cell is None else str(cell).strip() for cell in first]


def _read_xlsx(
  file: source_files.File, there: Sequence[str], needed: list[int]
) -> tuple[pa.Table, int]:
  cells: list[list[str | None]] = [[] for _ in needed]
  for name, rows in _sheets(file):
    places = needed
    if file.header:
      first = next(rows, None)
      if first is None:  # an empty sheet
        continue
      places = _places(file, name, _sheet_names(file, first), there, needed)
    for row in rows:
      if file.first_rows and len(cells[0]) == file.first_rows:
        break
      if any(cell is not None for cell in row):
        for column, place in zip(cells, places):
          # A row ends with its last filled cell.
          cell = row[place] if place < len(row) else None
          column.append(text_columns.python_text(cell))
  columns = [pa.array(column, pa.string()) for column in cells]
  return pa.table(columns, [str(position) for position in needed]), 0


def _places(
  file: source_files.File,
  sheet: str,
  header: list[str],
  there: Sequence[str],
  needed: list[int],
) -> list[int]:
  """Where a sheet has the columns of the first sheet.

  Columns of one name are told apart by their positions.
  """
  places = []
  for position in needed:
    name = there[position]
    if header.count(name) == 1:
      places.append(header.index(name))
    elif position < len(header) and header[position] == name:
      places.append(position)
    else:
      raise file.error(
        f'sheet {sheet!r} has no column {name!r}; '
        f'there are: {", ".join(map(repr, header))}'
      )
  return places


def _parse_object(text: str) -> Any:
  """What a line holds; None if it is neither JSON nor a Python literal.

  Keys are made encodable, as `text_columns.python_text` makes values.
  """
  try:
    row = json.loads(text)
  except (ValueError, RecursionError):  # also for a number of too many digits
    try:
      # The Amazon metadata of 2014 are Python literals: {'asin': '0001', ...}.
      row = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
      return None
  if isinstance(row, dict) and '\\u' in text:
    return {text_columns.encodable(str(key)): row[key] for key in row}
  return row


_READERS = {
  'csv': delimited.read,
  'parquet': _read_parquet,
  'feather': _read_feather,
  'json': _read_json,
  'xlsx': _read_xlsx,
}
