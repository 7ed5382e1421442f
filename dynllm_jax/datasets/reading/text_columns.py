"""Ids and texts from Arrow columns of any type."""

from typing import Any
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# How missing values are written in text files, in lower case.
_MISSING = pa.array(
  ['', 'nan', 'null', 'none', 'na', 'n/a', '<na>', 'nat', '\\n']
)


# Whole numbers, as they are and as they stand after they went through floats.
_WHOLE = r'^[+-]?[0-9]+(\.0*)?$'
_POINT = r'^[+-]?[0-9]+\.0*$'
# A number whose last digits a program has left out: 1.23457E+17.
_ROUNDED = r'^[+-]?[0-9](\.[0-9]+)?[eE]\+[0-9]+$'
# From here on not every whole number is a float of so many bits.
_INEXACT = {16: 2**11, 32: 2**24, 64: 2**53}


class Ids(NamedTuple):
  """Ids of a column.

  Attributes:
    names: str[rows], the ids; all rows of an id share one Python string.
    missing: bool[rows], where the id is null, NaN, blank or spells a missing
      value.
    rounded: bool[rows], where it is a number that lost digits, so that several
      ids may have become one.
    cut: bool[rows], where a character was lost, for which the replacement
      character stands; several ids may have become one.
    counts: rows whose id is not as it is written, by what was done.
  """

  names: np.ndarray
  missing: np.ndarray
  rounded: np.ndarray
  cut: np.ndarray
  counts: dict[str, int]


class Numbered(NamedTuple):
  """Strings by number.

  Attributes:
    codes: i64[rows], each row's string as a row of `distinct`.
    distinct: str[distinct], in order of first appearance.
  """

  codes: np.ndarray
  distinct: np.ndarray


def python_text(value: Any) -> str | None:
  """Text of a Python value, as `as_text` writes it; None stays None.

  Half a character, as is left of an emoji that was cut, becomes the replacement
  character: no file of UTF-8 text can hold it.
  """
  if value is None or value != value:
    return None
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, (list, tuple)):
    if value and isinstance(value[0], (list, tuple)):
      return python_text(value[0])  # Of several paths the first.
    texts = (python_text(element) for element in value)
    return ' > '.join(text for text in texts if text)
  return encodable(str(value))


def encodable(text: str) -> str:
  """A text with the replacement character in place of half a character."""
  try:
    text.encode()
    return text
  except UnicodeEncodeError:  # Two halves that belong together are joined.
    units = text.encode('utf-16-le', 'surrogatepass')
    return units.decode('utf-16-le', 'replace')


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
  """Any column as text, null where it is null.

  Strings stay exactly as written; integers become decimal strings, and so do
  floats and decimals that are whole (17850.0 is '17850'); NaN is null; lists
  are joined with ' > ', and a list of lists gives its first list. A dictionary
  stays one, of strings.
  """
  if isinstance(column, pa.Array):
    column = pa.chunked_array([column])
  column = plain(column)
  if pa.types.is_dictionary(column.type):
    column = column.unify_dictionaries()
  elif column.num_chunks > 1:
    texts = pa.chunked_array([as_text(chunk) for chunk in column.chunks])
    # There may be more than 2 GiB.
    return pa.concat_arrays(texts.cast(pa.large_string()).chunks)
  column = column.combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # no chunk, or more than 2 GiB
    column = pa.concat_arrays(column.chunks or [pa.array([], column.type)])

  kind = column.type
  if pa.types.is_dictionary(kind):
    return column
  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return column

  if pa.types.is_floating(kind):
    if kind == pa.float16():
      column = column.cast(pa.float32())
    whole = pc.and_(
      pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63)
    )
    integers = pc.if_else(whole, column, None).cast(pa.int64())
    integers = integers.cast(pa.string())
    present = pc.if_else(pc.is_nan(column), None, column)
    return pc.coalesce(integers, present.cast(pa.string()))

  if pa.types.is_decimal(kind):
    text = column.cast(pa.string())
    return pc.replace_substring_regex(text, r'\.0+$', '')
  if pa.types.is_nested(kind):
    return pa.array(map(python_text, column.to_pylist()), pa.string())
  return column.cast(pa.string())


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """A column in a type that pyarrow's functions know, with the same values.

  Those that save space are undone (views, runs, extensions), but dictionaries
  of strings stay: text would take several times the memory. Bytes that are no
  UTF-8 become the replacement character, and UUIDs are written out.
  """
  kind = column.type
  if isinstance(kind, pa.UuidType):
    found = column.to_pylist()
    return pa.chunked_array([[None if u is None else str(u) for u in found]])
  if isinstance(kind, pa.BaseExtensionType):
    chunks = [chunk.storage for chunk in column.chunks]
    return plain(pa.chunked_array(chunks, kind.storage_type))
  if pa.types.is_run_end_encoded(kind):
    chunks = [pc.run_end_decode(chunk) for chunk in column.chunks]
    return plain(pa.chunked_array(chunks, kind.value_type))

  if pa.types.is_dictionary(kind):
    values = kind.value_type
    if not (pa.types.is_nested(values) or _is_text(values)):
      return column.cast(values)
    dictionaries = [
      _decoded(chunk.dictionary)
      if _is_text(values)
      else as_text(chunk.dictionary)
      for chunk in column.chunks
    ]
    chunks = [
      pa.DictionaryArray.from_arrays(chunk.indices, words.cast(pa.string()))
      for chunk, words in zip(column.chunks, dictionaries)
    ]
    return pa.chunked_array(chunks, pa.dictionary(kind.index_type, pa.string()))
  if _is_text(kind):
    chunks = [_decoded(chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, None if chunks else pa.string())
  return column


def _decoded(chunk: pa.Array) -> pa.Array:
  """Strings, or bytes that should be some, as strings of UTF-8.

  What was cut, or written in another encoding, is none.
  """
  kept = chunk.type if chunk.type == pa.string() else pa.large_string()
  try:
    text = chunk.cast(kept)
    text.validate(full=True)
    return text
  except pa.ArrowInvalid:
    cells = chunk.cast(pa.large_binary()).to_pylist()
    return pa.array(
      [
        None if cell is None else cell.decode(errors='replace')
        for cell in cells
      ],
      kept,
    )


def _is_text(kind: pa.DataType) -> bool:
  """Whether values are strings, or bytes that should be some."""
  return any(
    check(kind)
    for check in (
      pa.types.is_string,
      pa.types.is_large_string,
      pa.types.is_string_view,
      pa.types.is_binary,
      pa.types.is_large_binary,
      pa.types.is_binary_view,
      pa.types.is_fixed_size_binary,
    )
  )


def ids(column: pa.ChunkedArray) -> Ids:
  """Ids as text.

  They are as written, but for blanks around them, and for `12.0`: where all ids
  of a column are whole numbers, those that went through floats on their way
  into the file are read as the others are.
  """
  encoded = as_text(column)
  if not pa.types.is_dictionary(encoded.type):
    encoded = encoded.dictionary_encode()
  codes = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy()
  names = pa.concat_arrays(
    [encoded.dictionary, pa.array([''], encoded.dictionary.type)]
  )
  rows = np.bincount(codes, minlength=len(names))

  trimmed = pc.utf8_trim_whitespace(names)
  missing = is_missing(trimmed)
  changed = {
    'has blanks around it, which are left out': pc.not_equal(trimmed, names)
  }
  numbers = missing | matches(trimmed, _WHOLE)
  plain = trimmed
  if numbers.all():
    changed['is written as 12.0 and read as 12'] = pa.array(
      matches(trimmed, _POINT)
    )
    plain = pc.replace_substring_regex(trimmed, r'\.0*$', '')
  rounded = matches(trimmed, _ROUNDED) | _beyond_floats(column, plain)

  cut = pc.match_substring(plain, '\ufffd').to_numpy(zero_copy_only=False)

  table = plain.to_numpy(zero_copy_only=False).astype(object)
  return Ids(
    table[codes],
    missing[codes],
    rounded[codes],
    cut[codes],
    counts={
      what: int(rows[mask.to_numpy(zero_copy_only=False) & ~missing].sum())
      for what, mask in changed.items()
    },
  )


def _beyond_floats(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
  """Which ids of a column of floats are larger than floats count in ones."""
  kind = column.type
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  if not pa.types.is_floating(kind):
    return np.zeros(len(names), bool)
  whole = pc.if_else(pa.array(matches(names, r'^-?[0-9]+$')), names, None)
  size = pc.abs(whole.cast(pa.float64()))
  return pc.fill_null(
    pc.greater_equal(size, float(_INEXACT[kind.bit_width])), False
  ).to_numpy(zero_copy_only=False)


def texts(column: pa.ChunkedArray) -> np.ndarray:
  """Texts for people to read, str[rows]; '' where missing."""
  plain = as_text(column)
  if pa.types.is_dictionary(plain.type):
    plain = plain.dictionary_decode()
  plain = pc.utf8_trim_whitespace(pc.fill_null(plain, ''))
  return np.where(is_missing(plain), '', plain.to_numpy(zero_copy_only=False))


def is_missing(text: pa.Array) -> np.ndarray:
  """Which texts are null, blank or spell a missing value, bool[rows]."""
  lower = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(text, '')))
  return pc.is_in(lower, _MISSING.cast(lower.type)).to_numpy(
    zero_copy_only=False
  )


def matches(text: pa.Array, pattern: str) -> np.ndarray:
  """Which texts match a regular expression anywhere, bool[rows]."""
  return pc.match_substring_regex(text, pattern).to_numpy(zero_copy_only=False)


def number(strings: np.ndarray) -> Numbered:
  """Numbers strings from 0 in order of first appearance.

  Args:
    strings: str[rows].
  """
  encoded = pa.array(strings, pa.large_string()).dictionary_encode()
  distinct = encoded.dictionary.to_numpy(zero_copy_only=False).astype(object)
  return Numbered(encoded.indices.to_numpy().astype(np.int64), distinct)
