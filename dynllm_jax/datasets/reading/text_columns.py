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


class Numbered(NamedTuple):
  """Strings by number.

  Attributes:
    codes: i64[rows], each row's string as a row of `distinct`.
    distinct: str[distinct], in order of first appearance.
  """

  codes: np.ndarray
  distinct: np.ndarray


def python_text(value: Any) -> str | None:
  """Text of a Python value, as `as_text` writes it; None stays None."""
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
  return str(value)


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.Array:
  """Any column as text, null where it is null.

  Strings stay exactly as written; integers become decimal strings, and so do
  floats that are whole (17850.0 is '17850'); NaN is null; lists are joined
  with ' > ', and a list of lists gives its first list. A dictionary of strings
  stays one.
  """
  if isinstance(column, pa.ChunkedArray):
    column = column.unify_dictionaries().combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Where there is more than 2 GiB.
    column = pa.concat_arrays(column.cast(pa.large_string()).chunks)

  kind = column.type
  if pa.types.is_dictionary(kind):
    if kind.value_type == pa.string():
      return column
    return as_text(column.dictionary_decode())

  if pa.types.is_string(kind) or pa.types.is_large_string(kind):
    return column

  if pa.types.is_floating(kind):
    whole = pc.and_(
      pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63)
    )
    integers = pc.if_else(whole, column, None).cast(pa.int64())
    integers = integers.cast(pa.string())
    present = pc.if_else(pc.is_nan(column), None, column)
    return pc.coalesce(integers, present.cast(pa.string()))

  if pa.types.is_nested(kind):
    return pa.array(map(python_text, column.to_pylist()), pa.string())
  return column.cast(pa.string())


def ids(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Ids as text, and which are missing.

  Returns:
    str[rows], where all rows of an id share one Python string, and bool[rows],
    True where the id is null, NaN, blank or spells a missing value.
  """
  encoded = as_text(column)
  if not pa.types.is_dictionary(encoded.type):
    encoded = encoded.dictionary_encode()
  names = encoded.dictionary
  blank = is_missing(names)
  codes = pc.fill_null(encoded.indices, len(names)).to_numpy()
  table = np.append(names.to_numpy(zero_copy_only=False), '').astype(object)
  return table[codes], np.append(blank, True)[codes]


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
