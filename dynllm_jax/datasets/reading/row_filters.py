"""Which rows are kept: conditions on the cells of a column (`data.where`)."""

from collections.abc import Callable
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynllm_jax.datasets.reading import text_columns

ALLOWED = (
  "a mapping of columns to a value, values or a threshold, as {'kind': 'buy'}, "
  "{'kind': ['buy', 'cart']}, {'rating': '>=4'}"
)
_THRESHOLD = re.compile(r'\s*(>=|<=|!=|>|<)\s*(.+)')
_COMPARE: dict[str, Callable[[Any, float], Any]] = {
  '>=': pc.greater_equal,
  '<=': pc.less_equal,
  '>': pc.greater,
  '<': pc.less,
}
_NUMBER = r'^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$'


def is_allowed(where: Any) -> bool:
  """Whether `data.where` is None or a mapping of columns to conditions."""
  if where is None:
    return True
  # A mapping of ml_collections is no collections.abc.Mapping.
  if not hasattr(where, 'items') or isinstance(where, str):
    return False
  for wanted in where.values():
    if not isinstance(wanted, (str, int, float, list, tuple)):
      return False
    match = isinstance(wanted, str) and _THRESHOLD.fullmatch(wanted)
    if not match or match[1] == '!=':
      continue
    if not re.match(_NUMBER, match[2].strip()):
      return False
  return True


def keeps(column: pa.ChunkedArray, wanted: Any) -> np.ndarray:
  """Which rows meet a condition.

  Args:
    column: any column.
    wanted: a value, or a list of them: cells that are equal as texts, or as
      numbers where the value is one; or a text `>=4`, with a sign of `>=`, `>`,
      `<=`, `<` before a number, or `!=` before a text. A cell that is no number
      is neither above nor below one.

  Returns:
    bool[rows].
  """
  text = text_columns.as_text(column)
  if not pa.types.is_dictionary(text.type):
    text = text.dictionary_encode()
  cells = text.dictionary
  if isinstance(wanted, str) and (match := _THRESHOLD.fullmatch(wanted)):
    sign, than = match[1], match[2].strip()
    if sign == '!=':
      kept = pc.not_equal(cells, pa.scalar(than, cells.type))
    else:
      kept = _COMPARE[sign](_numbers(cells), float(than))
  else:
    listed = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    # Arrow writes booleans in lower case.
    words = [str(v).lower() if isinstance(v, bool) else str(v) for v in listed]
    kept = pc.is_in(cells, pa.array(words, cells.type))
    numbers = [
      float(value)
      for value in listed
      if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if numbers:
      equal = pc.is_in(_numbers(cells), pa.array(numbers, pa.float64()))
      kept = pc.or_(kept, equal)
  kept = pc.fill_null(kept, False).to_numpy(zero_copy_only=False)
  codes = pc.fill_null(text.indices, len(kept)).to_numpy(zero_copy_only=False)
  # A missing cell differs from any text.
  absent = isinstance(wanted, str) and wanted.lstrip().startswith('!=')
  return np.append(kept, absent)[codes]


def examples(column: pa.ChunkedArray) -> list[str]:
  """The first distinct values of a column."""
  text = text_columns.as_text(column)
  if pa.types.is_dictionary(text.type):
    text = text.dictionary_decode()
  return pc.unique(text).slice(0, 10).to_pylist()


def _numbers(cells: pa.Array) -> pa.Array:
  """Cells as numbers, null where they are none."""
  trimmed = pc.utf8_trim_whitespace(cells)
  number = pa.array(text_columns.matches(trimmed, _NUMBER))
  return pc.if_else(number, trimmed, None).cast(pa.float64())
