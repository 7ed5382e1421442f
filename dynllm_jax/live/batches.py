"""What is observed: events and items, checked, as one record.

A `Batch` is what one call of `Recommender.observe` or `add_items` brought. It
holds all that applying it depends on, the embeddings of new texts included, so
that whoever applies the same batches in the same order to the same run holds
the same state, bit for bit. `to_json` and `from_json` are for a journal.
"""

import base64
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import itertools
import json
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from dynllm_jax.types import InputError

COLUMNS = ('user', 'item', 'time', 'title', 'category', 'brand')
TEXTS = ('title', 'category', 'brand')
MAX_ID_LENGTH = 1024  # characters of a user's or an item's id


class ItemText(NamedTuple):
  """An item with its text.

  Attributes:
    item: its id.
    title, category, brand: '' where there is none.
    vector: the embedding of the text, the bytes of f16[llm_dim].
  """

  item: str
  title: str = ''
  category: str = ''
  brand: str = ''
  vector: bytes = b''


class Batch(NamedTuple):
  """Events that came together, in the order in which they came.

  Attributes:
    users, items: ids as in the log.
    times: unix seconds, as they came.
    texts: of items that are new, or whose text is; also of items that no event
      of the batch has.
  """

  users: tuple[str, ...] = ()
  items: tuple[str, ...] = ()
  times: tuple[int, ...] = ()
  texts: tuple[ItemText, ...] = ()


class Observed(NamedTuple):
  """What became of events.

  Attributes:
    events: how many were taken in.
    new_users, new_items: that were not known before.
    late: events that were older than the newest, and count as of its time.
    position: of the batch that has them, in the journal if there is one.
    ranks: f64[events], each event's item among all items before it was taken
      in, if asked for (SPEC 5); in the order of the call.
    repeats: further events, which had been taken in under the same ids.
  """

  events: int = 0
  new_users: int = 0
  new_items: int = 0
  late: int = 0
  position: int = 0
  ranks: np.ndarray | None = None
  repeats: int = 0


class Row(NamedTuple):
  """One row of what a caller gave, checked; a text is None where not given."""

  user: str
  item: str
  time: int
  title: str | None = None
  category: str | None = None
  brand: str | None = None


def joined(parts: Sequence[Batch]) -> Batch:
  """One batch of several, in order."""
  return Batch(*(tuple(itertools.chain(*columns)) for columns in zip(*parts)))


def to_json(batch: Batch) -> str:
  """The batch as a line of JSON; equal batches give equal lines."""
  return json.dumps(
    {
      'users': batch.users,
      'items': batch.items,
      'times': batch.times,
      'texts': [
        [*text[:-1], base64.b64encode(text.vector).decode()]
        for text in batch.texts
      ],
    },
    ensure_ascii=False,
    separators=(',', ':'),
  )


def from_json(line: str) -> Batch:
  """The batch that `to_json` made a line of.

  Raises:
    ValueError: if it is none.
  """
  try:
    fields = json.loads(line)
    return Batch(
      users=tuple(map(str, fields['users'])),
      items=tuple(map(str, fields['items'])),
      times=tuple(map(int, fields['times'])),
      texts=tuple(
        ItemText(*texts)._replace(
          vector=base64.b64decode(vector, validate=True)
        )
        for *texts, vector in fields['texts']
      ),
    )
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'it is no batch ({error!r})') from error


def event_rows(events: Any, latest: float) -> list[Row]:
  """Checks events, in any form in which they may be given.

  Args:
    events: one event, a mapping with the keys of `COLUMNS` (the texts may be
      left out) or a tuple in their order; a sequence of those; or a table with
      such columns, of pandas, polars or Arrow.
    latest: unix seconds; no time may be later.

  Returns:
    The rows, in order.

  Raises:
    InputError: naming the first row and field that is not allowed.
  """
  rows = []
  for number, given in enumerate(_mappings(events, COLUMNS)):
    where = f'events[{number}]'
    rows.append(
      Row(
        user=as_id(f'{where}.user', given.get('user')),
        item=as_id(f'{where}.item', given.get('item')),
        time=as_time(f'{where}.time', given.get('time'), latest),
        **_texts(where, given),
      )
    )
  return rows


def item_rows(items: Any) -> list[Row]:
  """Checks items of a catalogue, which are no events.

  Args:
    items: as `events` of `event_rows`, with the keys `item`, `title`,
      `category` and `brand`, of which only the first must be there.

  Returns:
    Rows whose user is '' and whose time is 0.

  Raises:
    InputError: naming the first row and field that is not allowed.
  """
  columns = ('item', *TEXTS)
  return [
    Row(
      user='',
      item=as_id(f'items[{number}].item', given.get('item')),
      time=0,
      **_texts(f'items[{number}]', given),
    )
    for number, given in enumerate(_mappings(items, columns))
  ]


def event_ids(ids: Sequence[str] | None, count: int) -> tuple[str, ...]:
  """Ids of events, as clients may give them, checked.

  Args:
    ids: one for each event, '' for an event without one; None: no event has.
    count: number of events.

  Raises:
    InputError: naming what is not allowed.
  """
  if ids is None:
    return ()
  if isinstance(ids, str) or len(ids) != count:
    raise _not_allowed('ids', ids, f'one for each event, {count}')
  return tuple(
    '' if name == '' else as_id(f'ids[{number}]', name)
    for number, name in enumerate(ids)
  )


def as_id(field: str, value: Any) -> str:
  """An id as a string; whole numbers are ids too.

  Raises:
    InputError: if it is missing, empty, too long, or neither.
  """
  if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
    raise _not_allowed(
      field,
      value,
      f'an id as in the log, a string of 1 to {MAX_ID_LENGTH} characters or a '
      'whole number',
    )
  _check_unicode(field, value)
  return value


def as_time(field: str, value: Any, latest: float) -> int:
  """A time as unix seconds; a part of a second is cut off.

  Args:
    field: for the error.
    value: a number, or a datetime; without a time zone it is in UTC.
    latest: unix seconds; no time may be later.

  Raises:
    InputError: if it is none, negative, or too late.
  """
  seconds = value
  if isinstance(value, np.datetime64) and not np.isnat(value):
    seconds = int(value.astype('datetime64[s]').astype(np.int64))
  elif isinstance(value, datetime.datetime):
    if value.tzinfo is None:
      value = value.replace(tzinfo=datetime.UTC)
    seconds = value.timestamp()
  is_number = isinstance(seconds, (int, float, np.integer, np.floating))
  if (
    not is_number
    or isinstance(seconds, bool)
    or not (math.isfinite(seconds) and 0 <= seconds <= latest)
  ):
    raise _not_allowed(
      field,
      value,
      f'unix seconds from 0 to {int(latest)}, or a datetime; not in the future',
    )
  return int(seconds)


def _texts(where: str, given: Mapping[str, Any]) -> dict[str, str | None]:
  """The texts of a row; None where one is not given."""
  texts: dict[str, str | None] = {}
  for name in TEXTS:
    value = given.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
      texts[name] = None
      continue
    if not isinstance(value, str):
      raise _not_allowed(f'{where}.{name}', value, 'a text, or nothing')
    _check_unicode(f'{where}.{name}', value)
    texts[name] = value
  return texts


def _check_unicode(field: str, value: str) -> None:
  """Stops at what no journal and no answer could be written in."""
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise _not_allowed(field, value, 'a text that UTF-8 can hold') from error
  if '\0' in value:
    raise _not_allowed(field, value, 'a text without the character 0')


def _mappings(
  rows: Any, columns: tuple[str, ...]
) -> Iterable[Mapping[str, Any]]:
  """The rows of any form as mappings with keys among `columns`.

  Raises:
    InputError: for any other form, or a key that is none of them.
  """
  what = 'events' if 'user' in columns else 'items'
  if hasattr(rows, 'to_pylist'):  # Arrow
    rows = rows.to_pylist()
  elif hasattr(rows, 'to_dicts'):  # polars
    rows = rows.to_dicts()
  elif hasattr(rows, 'to_dict') and hasattr(rows, 'columns'):  # pandas
    rows = rows.to_dict('records')
  elif isinstance(rows, Mapping) or _is_tuple_row(rows):
    rows = [rows]
  elif isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
    raise _not_allowed(
      what,
      rows,
      f'a mapping with the keys {", ".join(columns)}, a tuple in that order, '
      'a list of them, or a table of pandas, polars or Arrow',
    )

  mappings = []
  for number, row in enumerate(rows):
    if isinstance(row, (tuple, list)) and len(row) <= len(columns):
      row = dict(zip(columns, row))
    if not isinstance(row, Mapping):
      raise _not_allowed(
        f'{what}[{number}]',
        row,
        f'a mapping with the keys {", ".join(columns)}, or a tuple in that '
        'order',
      )
    if unknown := [key for key in row if key not in columns]:
      raise InputError(
        f'{what}[{number}]: {unknown[0]!r} is no field; allowed: '
        f'{", ".join(columns)}'
      )
    mappings.append(row)
  return mappings


def _is_tuple_row(rows: Any) -> bool:
  """Whether a tuple is one row, and not a sequence of rows."""
  return (
    isinstance(rows, tuple)
    and len(rows) > 0
    and not isinstance(rows[0], (tuple, list, Mapping))
  )


def _not_allowed(field: str, value: Any, allowed: str) -> InputError:
  """The error; a long value is cut, since it may come from anywhere."""
  shown = repr(value)
  shown = shown if len(shown) <= 80 else shown[:77] + '...'
  return InputError(f'{field}: {shown} is not allowed; allowed: {allowed}')
