"""Text files of rows: CSV, TSV and the like."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import io
import os
import re
import sys
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from dynllm_jax.datasets.reading import source_files
from dynllm_jax.types import InputError

_BLOCK = 1 << 24  # bytes that are parsed at once, and a row must fit in
_LARGEST_BLOCK = (1 << 31) - 1
# By file name: what may separate columns, in order of preference.
_DELIMITERS = {'.csv': ',;\t|', '.tsv': '\t', '.inter': '\t', '.item': '\t'}
_OTHER_DELIMITERS = ('\t', ',', ';', '::', '|')
# What pyarrow and csv are given in place of a delimiter of several characters.
_SEPARATOR = '\x1f'
# What a backslash makes plain where it stands before quotes, as Spark, MySQL
# and Hive write them; any other is a backslash.
_ESCAPED = re.compile(r'\\(["\\])')
_DOUBLED = {'"': '""', '\\': '\\'}
# A column of RecBole's files has its type in its name.
_TYPED = re.compile(r'(.+):(?:token|token_seq|float|float_seq)')


def delimiter(file: source_files.File) -> str:
  """What separates a file's columns.

  The configuration may state it. Otherwise it is the first of the delimiters
  usual for the file's name that occurs in the first line with text.
  """
  if file.delimiter:
    return file.delimiter
  name = file.path.lower().removesuffix('.gz')
  several = _DELIMITERS.get(os.path.splitext(name)[1], _OTHER_DELIMITERS)
  with source_files.open_text(file, file.encodings[0]) as stream:
    first = next((line for line in stream if line.strip()), '')
  return next((one for one in several if one in first), several[0])


def records(file: source_files.File) -> Iterator[tuple[int, list[str]]]:
  """(line, cells) of a text file's rows, the header among them, row by row."""
  between = delimiter(file)
  with source_files.open_text(file, file.encodings[0]) as stream:
    reader = _reader(file, between, stream)
    line = 1
    for cells in reader:
      if cells:
        yield line, cells
      line = reader.line_num + 1


def column_names(file: source_files.File) -> list[str]:
  """The names of a file's columns; f0, f1, ... where it has none.

  The types that RecBole writes behind the names are left out.
  """
  _, first = next(records(file), (0, []))
  if not file.header:
    usual = [f'f{position}' for position in range(len(first))]
    return [*file.names, *usual[len(file.names) :]][: len(first)]
  # Some programs put a blank behind each delimiter.
  names = [name.strip() for name in first]
  typed = [_TYPED.fullmatch(name) for name in names]
  return [match[1] for match in typed if match] if all(typed) else names


def read(
  file: source_files.File, there: Sequence[str], needed: list[int]
) -> tuple[pa.Table, int]:
  """Reads columns as dictionaries of strings.

  Args:
    file: what to read.
    there: names of all its columns.
    needed: positions of those to read.

  Returns:
    The columns in that order, and how many malformed lines were left out.

  Raises:
    InputError: if a quote is not closed, or opens a value that spans lines and
      looks like rows that it has swallowed; if quotes within a value stand
      behind backslashes, undeclared.
    pa.ArrowException, UnicodeError, csv.Error: if the file is not of its
      format.
  """
  # By position, as several columns may have one name.
  names = [str(position) for position in range(len(there))]
  wanted = [names[position] for position in needed]
  if file.first_rows:
    return _read_first_rows(file, needed, len(there)), 0
  line, _ = next(records(file), (1, []))

  malformed: list[int | None] = []

  def on_malformed(row: pa.csv.InvalidRow) -> str:
    malformed.append(row.number)
    return 'skip'

  def read_as(
    encoding: str, threads: bool, block: int, strict: bool = True
  ) -> pa.Table:
    malformed.clear()
    stream, between = _stream(file, encoding, strict)
    with stream:
      return pa.csv.read_csv(
        stream,
        pa.csv.ReadOptions(
          use_threads=threads,
          block_size=block,
          column_names=names,
          # Blank lines before the header are rows to be skipped as well.
          skip_rows_after_names=line if file.header else 0,
          encoding=encoding,
        ),
        pa.csv.ParseOptions(
          delimiter=between,
          newlines_in_values=True,
          quote_char=False if file.quoting == 'none' else '"',
          invalid_row_handler=(on_malformed if file.skip_malformed else None),
        ),
        pa.csv.ConvertOptions(
          include_columns=wanted,
          strings_can_be_null=False,
          # Ids repeat: plain text would take several times the memory.
          column_types=dict.fromkeys(
            wanted, pa.dictionary(pa.int32(), pa.string())
          ),
        ),
      )

  block = _BLOCK
  encodings = list(file.encodings)
  while True:
    try:
      table = read_as(encodings[0], True, block)
      break
    except (pa.ArrowInvalid, UnicodeError) as error:
      if 'straddl' in str(error) and block < _LARGEST_BLOCK:
        block = min(16 * block, _LARGEST_BLOCK)
      elif len(encodings) > 1:
        del encodings[0]
      else:
        _check_quotes(file, num_rows=0)
        # Once more in one thread: only then does the message name the row.
        strict = not file.skip_malformed
        table = read_as(encodings[0], False, block, strict)
        break
  _check_quotes(file, table.num_rows + file.header + len(malformed))
  return table, len(malformed)


def _read_first_rows(
  file: source_files.File, needed: list[int], width: int
) -> pa.Table:
  """The first rows alone; lines that are no row are left out."""
  rows: list[list[str]] = []
  for _, cells in records(file):
    if len(rows) == file.first_rows + file.header:
      break
    if len(cells) == width:
      rows.append(cells)
  rows = rows[file.header :]
  return pa.table(
    [pa.array([row[position] for row in rows]) for position in needed],
    [str(position) for position in needed],
  )


def _reader(
  file: source_files.File,
  between: str,
  stream: Iterable[str],
  strict: bool = False,
):
  """The csv module's reader of a file's lines, whose cells may be long."""
  csv.field_size_limit(sys.maxsize)
  several = len(between) > 1
  if several:
    stream = (line.replace(between, _SEPARATOR) for line in stream)
  if file.quoting == 'backslash':
    stream = map(_doubled, stream)
  return csv.reader(
    stream,
    delimiter=_SEPARATOR if several else between,
    quoting=csv.QUOTE_NONE if file.quoting == 'none' else csv.QUOTE_MINIMAL,
    strict=strict,
  )


def _doubled(text: str) -> str:
  """A text with quotes written twice in place of those behind backslashes."""
  return _ESCAPED.sub(lambda match: _DOUBLED[match[1]], text)


def _stream(
  file: source_files.File, encoding: str, strict: bool
) -> tuple[pa.NativeFile, str]:
  """A file's bytes for pyarrow, and the one character between columns.

  Args:
    file: the file.
    encoding: of its text.
    strict: whether bytes that are not of the encoding stay as they are, for
      pyarrow to find, and do not become the replacement character.
  """
  between = delimiter(file)
  stream = pa.input_stream(file.path)
  if len(between) == 1 and file.quoting != 'backslash' and strict:
    return stream, between
  with stream:
    content = stream.read()

  text = content.decode(encoding, 'strict' if strict else 'replace')
  if len(between) > 1:
    text, between = text.replace(between, _SEPARATOR), _SEPARATOR
  if file.quoting == 'backslash':
    text = _doubled(text)
  return pa.input_stream(io.BytesIO(text.encode(encoding))), between


def _check_quotes(file: source_files.File, num_rows: int) -> None:
  """Stops at a quote that swallows rows.

  A cell that opens with a quote which nobody closes would take all rows up to
  the next quote, or to the end of the file, for its text, unnoticed. So no file
  may end within quotes, nothing may follow a quote that closes lines later,
  and unless such values are declared, none may span lines in a tab-separated
  file, or hold lines that look like rows. A quote behind a backslash would
  close its value, and cut it.

  Args:
    file: the file.
    num_rows: rows that were read, the header among them.

  Raises:
    InputError: naming the line on which the row with the quote starts.
  """
  if file.quoting == 'none':
    return
  found = _lines(file)
  escaped = found.escaped and file.quoting == 'auto'
  # Where no value spans lines, only the last one may be open.
  if found.number == num_rows and b'"' not in found.last and not escaped:
    return
  between = delimiter(file)
  with source_files.open_text(file, file.encodings[0]) as stream:
    seen = collections.deque[str](maxlen=1)
    reader = _reader(file, between, _noted(stream, seen), strict=True)
    width = 0
    while True:
      start = reader.line_num + 1
      try:
        cells = next(reader)
      except StopIteration:
        return
      except csv.Error as error:
        if 'unexpected end' in str(error):
          what = 'and is never closed'
        elif reader.line_num > start:
          what = (
            f'that spans lines, and text follows its end on line '
            f'{reader.line_num}'
          )
        elif escaped and '\\"' in seen[-1]:
          what = 'with quotes behind backslashes, the first of which cuts it'
        else:
          continue  # Within a line a quote takes nothing from others.
        raise _open_quote(file, start, what) from error

      width = width or len(cells)
      if (
        reader.line_num > start
        and file.quoting == 'auto'
        and _swallows(cells, between, width)
      ):
        raise _open_quote(file, start, 'that spans lines')


def _open_quote(file: source_files.File, line: int, what: str) -> InputError:
  return file.error(
    f'line {line}: a quote opens a value {what}; allowed: '
    "config.data.quoting='none' where quotes are plain characters, "
    "'double' where such values are meant, 'backslash' where quotes within a "
    'value stand behind backslashes'
  )


def _noted(lines: Iterable[str], seen: collections.deque[str]) -> Iterator[str]:
  """The lines, of which the last are noted."""
  for line in lines:
    seen.append(line)
    yield line


class _Lines(NamedTuple):
  """How many lines a file has, the last one, whether any has `\\"`."""

  number: int
  last: bytes
  escaped: bool


def _lines(file: source_files.File) -> _Lines:
  """Counts the lines of a file."""
  lines, rest, escaped = 0, b'', False
  with pa.input_stream(file.path) as stream:
    while block := stream.read(_BLOCK):
      lines += block.count(b'\n')
      # The last line that has text, with all that follows it.
      rest = rest + block
      escaped = escaped or b'\\"' in rest
      cut = rest.rstrip(b'\r\n').rfind(b'\n')
      rest = rest[cut + 1 :]
  ended = rest.endswith(b'\n') or not rest
  return _Lines(lines + (not ended), rest, escaped)


def _swallows(cells: list[str], between: str, width: int) -> bool:
  """Whether a row of several lines may hold other rows in one of its values.

  Tab-separated files are often written without quoting, so that no value is
  expected to span lines. Elsewhere a value is suspect all of whose lines but
  the first have as many delimiters as a row.
  """
  for cell in cells:
    first, *others = cell.splitlines() or ['']
    others = [line for line in others if line.strip()]
    rows = [line.count(between) == width - 1 for line in others]
    if others and (between == '\t' or (width > 1 and all(rows))):
      return True
  return False
