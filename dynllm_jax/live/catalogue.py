"""Users and items by id, and the items' texts, on the host.

Each has a row of the tables on the device, in order of first appearance; row 0
is padding, and no id is empty.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np

from dynllm_jax.live import batches
from dynllm_jax.live.batches import Batch
from dynllm_jax.live.batches import ItemText
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError


class Catalogue:
  """What users and items are called, and which items may be recommended.

  Attributes:
    users, items: ids by row.
    user_rows, item_rows: rows by id.
    texts: titles, categories and brands by row, '' where an item has none.

  Args:
    log: whose users and items come first.
  """

  def __init__(self, log: EventLog) -> None:
    self.users = [str(name) for name in log.user_ids]
    self.items = [str(name) for name in log.item_ids]
    self.user_rows = {name: row for row, name in enumerate(self.users)}
    self.item_rows = {name: row for row, name in enumerate(self.items)}
    del self.user_rows[''], self.item_rows['']
    columns = (log.titles, log.categories, log.brands)
    self.texts = [list(map(str, column)) for column in columns]
    self._of_log = len(self.users), len(self.items)
    self._changed_texts: set[int] = set()
    self._category_masks: dict[str, np.ndarray] = {}

  @property
  def num_users(self) -> int:
    return len(self.users) - 1

  @property
  def num_items(self) -> int:
    return len(self.items) - 1

  @property
  def titles(self) -> list[str]:
    """By row."""
    return self.texts[0]

  # -------------------------------------------------------------------- writing

  def add(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Gives the users and items of a batch rows, and items their texts.

    Returns:
      i32[events] rows of its users, and of its items.
    """
    known = len(self.items)
    users = _rows_of(batch.users, self.users, self.user_rows)
    named = [text.item for text in batch.texts]
    _rows_of(named, self.items, self.item_rows)
    items = _rows_of(batch.items, self.items, self.item_rows)
    self._make_room()
    if len(self.items) > known or batch.texts:
      self._category_masks = {}
    for text in batch.texts:
      row = self.item_rows[text.item]
      self._changed_texts.add(row)
      for column, value in zip(self.texts, text[1:4]):
        column[row] = value
    return users, items

  def newcomers(self, parts: Sequence[Batch]) -> list[tuple[int, int]]:
    """How many users and items each part is the first to name."""
    users: set[str] = set()
    items: set[str] = set()
    counts = []
    for part in parts:
      before = len(users), len(items)
      users.update(name for name in part.users if name not in self.user_rows)
      named = itertools.chain(part.items, (text.item for text in part.texts))
      items.update(name for name in named if name not in self.item_rows)
      counts.append((len(users) - before[0], len(items) - before[1]))
    return counts

  def new_texts(
    self,
    rows: Sequence[batches.Row],
    encode: Callable[[list[tuple[str, str, str]]], np.ndarray],
  ) -> tuple[ItemText, ...]:
    """Texts of rows that differ from what is known, the last of each item.

    Args:
      rows: checked.
      encode: `(title, category, brand of some items) -> [items, llm_dim]`.
    """
    new: dict[str, tuple[str, str, str]] = {}
    for row in rows:
      given = row[3:]
      if all(text is None for text in given):
        continue
      at = self.item_rows.get(row.item)
      known = tuple('' if at is None else column[at] for column in self.texts)
      before = new.get(row.item, known)
      after = tuple(
        old if text is None else text for old, text in zip(before, given)
      )
      if after != known or at is None:
        new[row.item] = after  # type: ignore[assignment]
      else:
        new.pop(row.item, None)
    if not new:
      return ()

    vectors = encode([*new.values()])
    return tuple(
      ItemText(item, *text, vector=vector.astype(np.float16).tobytes())
      for (item, text), vector in zip(new.items(), vectors)
    )

  def saved(self) -> dict[str, Any]:
    """What has come since the log, as JSON values."""
    users, items = self._of_log
    return {
      'users': self.users[users:],
      'items': self.items[items:],
      'texts': {
        row: [column[row] for column in self.texts]
        for row in sorted(self._changed_texts)
      },
    }

  def load(self, saved: dict[str, Any]) -> None:
    """Takes in what `saved` returned; nothing has come before.

    Raises:
      KeyError: if something is missing; nothing is changed then.
    """
    users, items, texts = (saved[name] for name in ('users', 'items', 'texts'))
    _rows_of(users, self.users, self.user_rows)
    _rows_of(items, self.items, self.item_rows)
    self._make_room()
    for row, columns in texts.items():
      self._changed_texts.add(int(row))
      for column, text in zip(self.texts, columns, strict=True):
        column[int(row)] = text
    self._category_masks = {}

  def _make_room(self) -> None:
    """Lets every item have texts, if only empty ones."""
    for column in self.texts:
      column.extend([''] * (len(self.items) - len(column)))

  # -------------------------------------------------------------------- reading

  def user_row(self, user: str) -> int:
    """A user's row, 0 for one who is not known."""
    return self.user_rows.get(user, 0)

  def item_row(self, field: str, item: Any) -> int:
    """An item's row.

    Args:
      field: for the error.
      item: its id.

    Raises:
      InputError: if there is no such item.
    """
    row = self.item_rows.get(batches.as_id(field, item))
    if row is None:
      raise InputError(
        f'{field}: there is no item {item!r}; allowed: an item of the log, or '
        'one that was added since'
      )
    return row

  def rows_of_items(self, field: str, items: Iterable[Any]) -> np.ndarray:
    """Rows of items, i32; errors name `field[number]`.

    Raises:
      InputError: if there is no such item.
    """
    rows = [
      self.item_row(f'{field}[{number}]', item)
      for number, item in enumerate(items)
    ]
    return np.array(rows, np.int32)

  def allowed(
    self,
    candidates: Iterable[str] | None,
    categories: Iterable[str] | None,
    exclude: Iterable[str] | None,
  ) -> np.ndarray:
    """bool[items], item 1 first: what may be recommended to anybody.

    Args:
      candidates, categories, exclude: as those of `Recommender.recommend`.

    Raises:
      InputError: if there is no such item or category.
    """
    allowed = np.ones(self.num_items, bool)
    if candidates is not None:
      allowed[:] = False
      allowed[self.rows_of_items('candidates', candidates) - 1] = True
    if categories is not None:
      of_category = [self._category_mask(name) for name in categories]
      nothing = np.zeros(self.num_items, bool)
      allowed &= np.logical_or.reduce([nothing, *of_category])
    if exclude is not None:
      rows = [self.item_rows.get(str(item), 0) for item in exclude]
      allowed[np.array([row for row in rows if row], int) - 1] = False
    return allowed

  def _category_mask(self, name: str) -> np.ndarray:
    """bool[items]: which are of a category.

    Raises:
      InputError: if none is.
    """
    if name not in self._category_masks:
      mask = np.array([other == name for other in self.texts[1][1:]], bool)
      if not mask.any():
        raise InputError(
          f'categories: no item is of {name!r}; allowed: categories of the '
          'item table'
        )
      self._category_masks[name] = mask
    return self._category_masks[name]


def _rows_of(
  names: Iterable[str], ids: list[str], rows: dict[str, int]
) -> np.ndarray:
  """Rows of ids, i32; those that are new get the next ones."""
  found = []
  for name in names:
    row = rows.get(name)
    if row is None:
      row = rows[name] = len(ids)
      ids.append(name)
    found.append(row)
  return np.array(found, np.int32)
