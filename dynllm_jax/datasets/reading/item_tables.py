"""Item tables: titles, categories and brands of a log's items."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple
import unicodedata

import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import InputError

TEXTS = ('title', 'category', 'brand')
# Names of the columns that are read where the configuration names none.
USUAL_NAMES = {
  'title': (
    'title',
    'name',
    'item_name',
    'product_name',
    'product_title',
    'movie_title',
  ),
  'category': ('category', 'categories', 'genre', 'genres', 'class'),
  'brand': ('brand', 'store', 'manufacturer'),
}

# What ids may have lost or gained on their way into one of two files.
_CHANGES: dict[str, Callable[[str], str]] = {
  'without leading zeros': lambda name: name.lstrip('0') or '0',
  'without the decimals .0': lambda name: name.removesuffix('.0'),
  'in lower case': str.casefold,
  'without quotes around them': lambda name: name.strip('"\''),
  'with one form of accents': lambda name: unicodedata.normalize('NFC', name),
  'without what is no letter or digit': lambda name: ''.join(
    filter(str.isalnum, name)
  ),
  'by their digits alone': lambda name: ''.join(filter(str.isdigit, name)),
}


class Items(NamedTuple):
  """An item table.

  Attributes:
    item_ids, titles, categories, brands: str[table]; a text may be ''.
    counts: what was counted in reading them.
  """

  item_ids: np.ndarray
  titles: np.ndarray
  categories: np.ndarray
  brands: np.ndarray
  counts: dict[str, int]


def no_items() -> Items:
  """The table of a log without one."""
  empty = np.array([], object)
  return Items(empty, empty, empty, empty, counts={})


def read_items(columns: columns_by_role.Columns, bad_rows: str) -> Items:
  """The item table of the columns `item`, `title`, `category`, `brand`.

  A text column may be absent. Of several rows of an item the first is kept.

  Args:
    columns: what was read.
    bad_rows: 'error' or 'drop'.

  Raises:
    InputError: at the first row without an item id, if not dropped.
  """
  with file_formats.reading(columns.file):
    found = text_columns.ids(columns.table['item'])
    texts = {
      role: text_columns.texts(columns.table[role])
      for role in TEXTS
      if role in columns.names
    }

  names = found.names
  good, dropped = columns_by_role.good_rows(
    columns, columns_by_role.id_problems('item', found), bad_rows
  )
  codes = text_columns.number(names[good]).codes
  _, first = np.unique(codes, return_index=True)
  kept = good[np.sort(first)]

  counts = {
    'item table: rows read': columns.table.num_rows,
    **{
      f'item table: rows whose item {w}': n
      for w, n in found.counts.items()
      if n
    },
    **{f'item table: {key}': count for key, count in dropped.items()},
  }
  if len(kept) < len(good):
    counts['item table: repeated ids dropped'] = len(good) - len(kept)
  cut = sum('\ufffd' in text for role in texts for text in texts[role][kept])
  if cut:
    counts['item table: texts with half a character'] = cut

  absent = np.full(len(names), '', object)
  titles, categories, brands = (texts.get(role, absent)[kept] for role in TEXTS)
  return Items(names[kept], titles, categories, brands, counts=counts)


def too_few_found(missing: int, total: int) -> bool:
  """Whether less than half of a log's items are in the item table."""
  return 2 * (total - missing) < total


def mismatch(log_ids: np.ndarray, table_ids: np.ndarray) -> InputError:
  """The error where a log's items are not in its item table.

  Args:
    log_ids: str[items], of the log.
    table_ids: str[table], of the table.

  Returns:
    The error, with ids of both sides, and what would make them join.
  """
  known = set(table_ids)
  found = sum(name in known for name in log_ids)
  hint = ''
  for how, change in _CHANGES.items():
    changed = {change(name) for name in table_ids} - {''}
    joined = sum(change(name) in changed for name in log_ids)
    if joined > found and not too_few_found(
      len(log_ids) - joined, len(log_ids)
    ):
      hint = f'; they would join {how}'
      break
  lacking = [name for name in log_ids if name not in known]
  return InputError(
    f'config.data.items: of {len(log_ids)} items of the log only {found} are '
    f'in the item table; the log has {_some(lacking)}, the table '
    f'{_some(table_ids)}{hint}; allowed: a table with most of the items, whose '
    "ids config.data.items_item_column names (config.data.items_missing='warn' "
    'goes on without the texts)'
  )


def _some(ids: Sequence[str] | np.ndarray) -> str:
  return ', '.join(checks.shown(str(name)) for name in ids[:3])
