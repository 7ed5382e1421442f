"""File formats: a file's columns, and some of them as an Arrow table."""

import ast
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import xml.etree.ElementTree
import zipfile
import zlib
from typing import Any, Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from dynllm_jax.datasets import values
from dynllm_jax.types import InputError

_FORMATS = {
    '.csv': 'csv', '.tsv': 'csv', '.txt': 'csv',
    '.parquet': 'parquet', '.pq': 'parquet',
    '.json': 'json', '.jsonl': 'json', '.ndjson': 'json',
    '.xlsx': 'xlsx',
}
# Rows of a JSON file that are looked at to learn its keys and their types.
_PEEK = 1000
_BLOCK = 1 << 24  # bytes; a row longer than this is an error of pyarrow's
# What pyarrow, gzip, csv and openpyxl raise on a file that is not what its
# name says.
READ_ERRORS = (pa.ArrowException, OSError, EOFError, UnicodeError, csv.Error,
               zlib.error, zipfile.BadZipFile, KeyError,
               xml.etree.ElementTree.ParseError)


@dataclasses.dataclass(frozen=True)
class File:
  """A file and how to read it.

  Attributes:
    path: where it is.
    field: the config field that named it, for messages.
    header: whether a text file starts with column names.
    delimiter: between the columns of a text file; '' is a tab for .tsv and a
      comma otherwise.
    skip_malformed: leave out (and count) lines that are no row.
    encodings: of a text file, tried in order.
  """
  path: str
  field: str = 'data.events'
  header: bool = True
  delimiter: str = ''
  skip_malformed: bool = False
  encodings: tuple[str, ...] = ('utf8',)

  @classmethod
  def of(cls, data_config: Any, field: str, **options: Any) -> 'File':
    """The file that `data_config.<field>` names, checked to be there."""
    path = check_file(f'data.{field}', data_config[field])
    delimiter = data_config.delimiter.replace('\\t', '\t')
    if len(delimiter) > 1:
      raise InputError(
          f'data.delimiter: {delimiter!r} is not allowed; it must be a single '
          "character, or '' to choose by file name")
    return cls(path, f'data.{field}', data_config.header, delimiter,
               data_config.bad_rows == 'drop', **options)

  @property
  def kind(self) -> str:
    """csv, parquet or json, by the name.

    Raises:
      InputError: for any other name.
    """
    name = os.path.basename(self.path).lower().removesuffix('.gz')
    suffix = os.path.splitext(name)[1]
    if suffix not in _FORMATS:
      raise InputError(
          f'{self.field}: {self.path} has an unknown format {suffix!r}; '
          f'allowed: {", ".join(_FORMATS)}, text files also with .gz')
    return _FORMATS[suffix]

  def error(self, what: str) -> InputError:
    """An error about this file, on one line."""
    return InputError(f'{self.field}: {self.path}: {" ".join(what.split())}')


def check_file(field: str, path: str) -> str:
  """The path of a readable, non-empty file.

  Raises:
    InputError: naming `field` and the path, if it is anything else.
  """
  if not path:
    raise InputError(f'{field}: is empty; it must be the path of a file')
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    raise InputError(f'{field}: {path} is a directory; it must be a file')
  if not os.path.exists(path):
    raise InputError(f'{field}: {path} does not exist; it must be a file')
  if not os.access(path, os.R_OK):
    raise InputError(f'{field}: {path} cannot be read; check its permissions')
  if os.path.getsize(path) == 0:
    raise InputError(f'{field}: {path} is an empty file; it must hold rows')
  return path


def column_names(file: File) -> list[str]:
  """The names of a file's columns; f0, f1, ... where it has no header.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    if file.kind == 'parquet':
      return pa.parquet.ParquetFile(file.path).schema_arrow.names
    if file.kind == 'json':
      head = itertools.islice(_objects(file), _PEEK)
      return list(dict.fromkeys(key for row in head for key in row))
    if file.kind == 'xlsx':
      with contextlib.closing(_sheets(file)) as sheets:
        _, rows = next(sheets)
        return [str(cell) for cell in next(rows, ())]
    _, first = next(_records(file), (0, []))
  except READ_ERRORS as error:
    raise file.error(f'cannot be read: {error}') from error
  return first if file.header else [f'f{i}' for i in range(len(first))]


def read(file: File, needed: list[str]) -> tuple[pa.Table, int]:
  """Reads the named columns.

  Returns:
    The table, and how many malformed lines were left out.

  Raises:
    InputError: if the file cannot be read.
  """
  try:
    return _READERS[file.kind](file, needed)
  except READ_ERRORS as error:
    raise file.error(f'cannot be read: {error}') from error


def line_of(file: File, row: int) -> int | None:
  """The line on which a data row (from 0) starts; None without lines."""
  if file.kind == 'json':
    with _open(file, 'utf8') as stream:
      lines = (i for i, text in enumerate(stream, 1) if text.strip())
      return next(itertools.islice(lines, row, None))
  if file.kind == 'csv':
    rows = itertools.islice(_records(file), row + file.header, None)
    return next(rows)[0]
  return None


def _open(file: File, encoding: str) -> io.TextIOBase:
  opener = gzip.open if file.path.lower().endswith('.gz') else open
  encoding = 'utf-8-sig' if encoding == 'utf8' else encoding
  return opener(file.path, 'rt', encoding=encoding, newline='',
                errors='replace' if len(file.encodings) > 1 else 'strict')


def _delimiter(file: File) -> str:
  name = file.path.lower().removesuffix('.gz')
  return file.delimiter or ('\t' if name.endswith('.tsv') else ',')


def _records(file: File) -> Iterator[tuple[int, list[str]]]:
  """(line, cells) of a text file's rows, the header among them, row by row."""
  with _open(file, file.encodings[0]) as stream:
    reader = csv.reader(stream, delimiter=_delimiter(file))
    line = 1
    for cells in reader:
      if cells:
        yield line, cells
      line = reader.line_num + 1


def _read_csv(file: File, needed: list[str]) -> tuple[pa.Table, int]:
  malformed = []

  def on_malformed(row):
    malformed.append(row.number)
    return 'skip'

  def read(encoding, threads):
    malformed.clear()
    with pa.input_stream(file.path) as stream:
      return pa.csv.read_csv(
          stream,
          pa.csv.ReadOptions(use_threads=threads, block_size=_BLOCK,
                             autogenerate_column_names=not file.header,
                             encoding=encoding),
          pa.csv.ParseOptions(
              delimiter=_delimiter(file), newlines_in_values=True,
              invalid_row_handler=(on_malformed if file.skip_malformed
                                   else None)),
          pa.csv.ConvertOptions(
              include_columns=needed, strings_can_be_null=False,
              # A dictionary: ids repeat, and text would be several times it.
              column_types=dict.fromkeys(
                  needed, pa.dictionary(pa.int32(), pa.string()))))

  for encoding in file.encodings:
    try:
      return read(encoding, True), len(malformed)
    except (pa.ArrowInvalid, UnicodeError):
      if encoding == file.encodings[-1]:
        # Once more in one thread: only then does the message name the row.
        return read(encoding, False), len(malformed)


def _read_parquet(file: File, needed: list[str]) -> tuple[pa.Table, int]:
  return pa.parquet.ParquetFile(file.path).read(columns=needed), 0


def _read_json(file: File, needed: list[str]) -> tuple[pa.Table, int]:
  head = list(itertools.islice(_objects(file), _PEEK))
  types = {name: _json_type([row.get(name) for row in head]) for name in needed}
  if all(type_ is not None for type_ in types.values()):
    try:
      with pa.input_stream(file.path) as stream:
        table = pa.json.read_json(
            stream, pa.json.ReadOptions(block_size=_BLOCK),
            pa.json.ParseOptions(explicit_schema=pa.schema(types),
                                 unexpected_field_behavior='ignore'))
      return table.select(needed), 0
    except pa.ArrowInvalid:
      pass  # Mixed types or a line that is no object: row by row, as text.
  cells = {name: [] for name in needed}
  malformed = [0]
  for row in _objects(file, malformed):
    for name in needed:
      cells[name].append(values.python_text(row.get(name)))
  return pa.table({name: pa.array(column, pa.string())
                   for name, column in cells.items()}), malformed[0]


def _json_type(sample: list[Any]) -> pa.DataType | None:
  """The Arrow type of the values, None where one type does not hold them."""
  kinds = {type(value) for value in sample if value is not None}
  if kinds == {list}:
    nested = any(isinstance(x, list) for value in sample for x in value or ())
    return None if nested else pa.list_(pa.string())
  return {
      frozenset(): pa.string(), frozenset([str]): pa.string(),
      frozenset([int]): pa.int64(), frozenset([bool]): pa.bool_(),
      frozenset([float]): pa.float64(), frozenset([int, float]): pa.float64(),
  }.get(frozenset(kinds))


def _objects(file: File, malformed: list[int] | None = None
             ) -> Iterator[dict[str, Any]]:
  """The objects of a JSON lines file, one by one."""
  with _open(file, 'utf8') as stream:
    for line, text in enumerate(stream, 1):
      if not text.strip():
        continue
      row = _parse_object(text)
      if isinstance(row, dict):
        yield row
      elif not file.skip_malformed:
        raise file.error(
            f'line {line}: {text.strip()[:60]!r} is not a JSON object; '
            'a file must have one object a line')
      elif malformed is not None:
        malformed[0] += 1


def _sheets(file: File) -> Iterator[tuple[str, Iterator[tuple[Any, ...]]]]:
  """(name, rows of cells) of every sheet of a workbook."""
  import openpyxl  # Only workbooks need it.
  book = openpyxl.load_workbook(file.path, read_only=True, data_only=True)
  try:
    for sheet in book.worksheets:
      yield sheet.title, sheet.iter_rows(values_only=True)
  finally:
    book.close()


def _read_xlsx(file: File, needed: list[str]) -> tuple[pa.Table, int]:
  cells = [[] for _ in needed]
  for name, rows in _sheets(file):
    header = [str(cell) for cell in next(rows, ())]
    lacking = [column for column in needed if column not in header]
    if lacking:
      raise file.error(f'sheet {name!r} has no column {lacking[0]!r}; '
                       f'there are: {", ".join(map(repr, header))}')
    places = [header.index(column) for column in needed]
    for row in rows:
      if any(cell is not None for cell in row):
        for column, place in zip(cells, places):
          # A row ends with its last filled cell.
          cell = row[place] if place < len(row) else None
          column.append(values.python_text(cell))
  return pa.table([pa.array(c, pa.string()) for c in cells], needed), 0


def _parse_object(text: str) -> Any:
  """What a line holds; None if it is neither JSON nor a Python literal."""
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    pass
  try:
    # So are the 2014 Amazon metadata written: {'asin': '0001', ...}.
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None


_READERS = {'csv': _read_csv, 'parquet': _read_parquet, 'json': _read_json,
            'xlsx': _read_xlsx}
