"""Text files of rows: CSV, TSV and the like."""

from collections.abc import Iterator
import csv
import os

import pyarrow as pa
import pyarrow.csv

from dynllm_jax.datasets.reading import source_files

_BLOCK = 1 << 24  # bytes; a row longer than this is an error of pyarrow's
# By file name: what may separate columns, in order of preference.
_DELIMITERS = {'.csv': ',;\t|', '.tsv': '\t'}
_OTHER_DELIMITERS = '\t,;|'


def delimiter(file: source_files.File) -> str:
  """The character between a file's columns.

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
    reader = (
      csv.reader(stream, delimiter=between, quoting=csv.QUOTE_NONE)
      if file.quoting == 'none'
      else csv.reader(stream, delimiter=between)
    )

    line = 1
    for cells in reader:
      if cells:
        yield line, cells
      line = reader.line_num + 1


def read(file: source_files.File, needed: list[str]) -> tuple[pa.Table, int]:
  """Reads the named columns as dictionaries of strings.

  Returns:
    The table, and how many malformed lines were left out.

  Raises:
    InputError: if a tab-separated file has a value that spans lines, and it is
      not declared whether quotes enclose values.
    pa.ArrowException, UnicodeError: if the file is not of its format.
  """
  between = delimiter(file)
  check_quotes = between == '\t' and file.quoting == 'auto'
  malformed = []

  def on_malformed(row: pa.csv.InvalidRow) -> str:
    malformed.append(row.number)
    return 'skip'

  def read_as(encoding: str, threads: bool) -> pa.Table:
    malformed.clear()
    with pa.input_stream(file.path) as stream:
      return pa.csv.read_csv(
        stream,
        pa.csv.ReadOptions(
          use_threads=threads,
          block_size=_BLOCK,
          autogenerate_column_names=not file.header,
          encoding=encoding,
        ),
        pa.csv.ParseOptions(
          delimiter=between,
          newlines_in_values=True,
          quote_char=False if file.quoting == 'none' else '"',
          invalid_row_handler=(on_malformed if file.skip_malformed else None),
        ),
        pa.csv.ConvertOptions(
          include_columns=needed,
          strings_can_be_null=False,
          # Ids repeat: plain text would take several times the memory.
          column_types=dict.fromkeys(
            needed, pa.dictionary(pa.int32(), pa.string())
          ),
        ),
      )

  for encoding in file.encodings:
    try:
      table = read_as(encoding, True)
      break
    except (pa.ArrowInvalid, UnicodeError):
      if encoding == file.encodings[-1]:
        if check_quotes:
          _check_quotes(file, num_rows=0)
        # Once more in one thread: only then does the message name the row.
        table = read_as(encoding, False)
  if check_quotes:
    _check_quotes(file, table.num_rows + file.header + len(malformed))
  return table, len(malformed)


def _check_quotes(file: source_files.File, num_rows: int) -> None:
  """Stops at a value that spans lines in a tab-separated file.

  Such files are often written without quoting. There a title that begins with
  a quote would swallow all rows up to the next quote, unnoticed.
  """
  with pa.input_stream(file.path) as stream:
    lines, last = 0, b'\n'
    while block := stream.read(_BLOCK):
      lines, last = lines + block.count(b'\n'), block[-1:]
  if lines + (last != b'\n') == num_rows:
    return
  for line, cells in records(file):  # Blank lines are no rows either.
    if any('\n' in cell for cell in cells):
      raise file.error(
        f'line {line}: a quote opens a value that spans lines; allowed: '
        "config.data.quoting='none' where quotes are plain characters, "
        "'double' where such values are meant"
      )
