"""Item tables: titles, categories and brands of a log's items."""

from typing import NamedTuple

import numpy as np

from dynllm_jax.datasets.reading import columns_by_role
from dynllm_jax.datasets.reading import file_formats
from dynllm_jax.datasets.reading import text_columns

TEXTS = ('title', 'category', 'brand')


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
    names, no_item = text_columns.ids(columns.table['item'])
    texts = {
      role: text_columns.texts(columns.table[role])
      for role in TEXTS
      if role in columns.names
    }

  missing = columns_by_role.Problem(
    'item', 'is missing', no_item, 'any non-empty id'
  )
  good, dropped = columns_by_role.good_rows(columns, [missing], bad_rows)
  codes = text_columns.number(names[good]).codes
  _, first = np.unique(codes, return_index=True)
  kept = good[np.sort(first)]

  counts = {
    'item table: rows read': columns.table.num_rows,
    **{f'item table: {key}': count for key, count in dropped.items()},
  }
  if len(kept) < len(good):
    counts['item table: repeated ids dropped'] = len(good) - len(kept)

  absent = np.full(len(names), '', object)
  titles, categories, brands = (texts.get(role, absent)[kept] for role in TEXTS)
  return Items(names[kept], titles, categories, brands, counts=counts)
