"""Events that were observed live, kept as a file beside the log they follow.

One Parquet table has both: rows of events (`user`, `item`, `time` in unix
seconds), and rows without a user, which are items with their texts. The table
is what `config.data.journal` names; `loading.load` adds it to whatever a source
has read.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from dynllm_jax.datasets.reading import source_files
from dynllm_jax.storage.atomic import write_atomically
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog

_TEXTS = ('title', 'category', 'brand')
_SCHEMA = pa.schema(
  [
    ('user', pa.string()),
    ('item', pa.string()),
    ('time', pa.int64()),
    *((name, pa.string()) for name in _TEXTS),
  ]
)


class LiveEvents(NamedTuple):
  """Events in the order in which they came, and what items are called.

  Attributes:
    users, items: ids.
    times: unix seconds.
    texts: title, category and brand by item.
  """

  users: Sequence[str]
  items: Sequence[str]
  times: Sequence[int]
  texts: Mapping[str, tuple[str, str, str]]


def write(path: pathlib.Path, events: LiveEvents) -> None:
  """Writes the table, whole or not at all.

  Raises:
    OSError: if it cannot be written.
  """
  none_of_texts = [None] * len(events.texts)
  none_of_events = [None] * len(events.users)
  columns = {
    'user': [*events.users, *none_of_texts],
    'item': [*events.items, *events.texts],
    'time': [*events.times, *none_of_texts],
  }
  for number, name in enumerate(_TEXTS):
    columns[name] = [
      *none_of_events,
      *(texts[number] for texts in events.texts.values()),
    ]
  content = io.BytesIO()
  pyarrow.parquet.write_table(pa.table(columns, _SCHEMA), content)
  write_atomically(path, content.getvalue())


def add(raw: RawLog, file: source_files.File) -> RawLog:
  """A log with the events of a table after its own.

  An item's text in the table takes the place of what the log has.

  Args:
    raw: as a source has read it.
    file: of `config.data.journal`.

  Raises:
    InputError: if the file is no such table.
  """
  try:
    table = pyarrow.parquet.read_table(file.path, schema=_SCHEMA)
  except (pa.ArrowException, OSError, ValueError) as error:
    words = ' '.join(str(error).split())
    raise InputError(
      f'{file.field}: {file.path} cannot be read ({words}); allowed: a file '
      'that --init_from has written'
    ) from error

  columns = {
    name: table[name].to_numpy(zero_copy_only=False)
    for name in table.column_names
  }
  is_event = np.array([user is not None for user in columns['user']], bool)
  new = {name: column[is_event] for name, column in columns.items()}
  texts = {name: column[~is_event] for name, column in columns.items()}
  old_items = np.isin(raw.item_ids, texts['item'], invert=True)
  # Items that nobody has named are no fault of the item table.
  nameless = new['item'] if len(raw.item_ids) else [*raw.items, *new['item']]
  nameless = [*dict.fromkeys(nameless)]
  named = np.concatenate([raw.item_ids, texts['item']])
  nameless = np.array(nameless, object)[np.isin(nameless, named, invert=True)]

  def joined(old: np.ndarray, name: str, rest: np.ndarray) -> np.ndarray:
    return np.concatenate([old[old_items], texts[name], rest]).astype(object)

  count = int(is_event.sum())
  none = np.full(len(nameless), '', object)
  fractions = raw.fractions
  if fractions is not None:
    fractions = np.pad(fractions, (0, count))
  return dataclasses.replace(
    raw,
    users=np.concatenate([raw.users, new['user']]),
    items=np.concatenate([raw.items, new['item']]),
    times=np.concatenate([raw.times, new['time'].astype(np.int64)]),
    fractions=fractions,
    item_ids=joined(raw.item_ids, 'item', nameless),
    titles=joined(raw.titles, 'title', none),
    categories=joined(raw.categories, 'category', none),
    brands=joined(raw.brands, 'brand', none),
    counts={**raw.counts, 'events observed live': count},
    source=f'{raw.source}, with {count:,} events observed live',
  )
