"""Preparation: duplicates, sampling, the core, numbering, the split."""

import ml_collections
import numpy as np

from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog

OUTSIDE = '{} outside of the core'
NOT_IN_TABLE = 'items of the core that the item table lacks'


def prepare(
  raw: RawLog, data_config: ml_collections.ConfigDict, fingerprint: str = ''
) -> EventLog:
  """Filters, sorts, numbers and splits a log (SPEC 2.2).

  Exact duplicates go first, then the users that sampling leaves out, then what
  is outside of the core. Users and items are numbered from 1 in order of first
  appearance in the log sorted by time.

  Args:
    raw: the log as read.
    data_config: `config.data`; `sample_users`, `sample_seed`,
      `min_user_items` and `min_item_users` are read.
    fingerprint: becomes the log's.

  Raises:
    InputError: if too little is left, a split is empty, or the log is longer
      than 2^31 seconds.
  """
  users, user_ids = text_columns.number(raw.users)
  items, item_ids = text_columns.number(raw.items)
  counts = dict(raw.counts)

  fractions = raw.fractions
  if fractions is None:
    fractions = np.zeros(len(users), np.int64)
  keep = np.flatnonzero(first_occurrences(users, items, raw.times, fractions))
  counts['exact duplicates dropped'] = len(users) - len(keep)
  if data_config.sample_users < 1:
    kept_users = sampled_users(
      user_ids, data_config.sample_users, data_config.sample_seed
    )
    counts['users left out by sampling'] = int((~kept_users).sum())
    keep = keep[kept_users[users[keep]]]
  core = _core(users[keep], items[keep], data_config, raw.source)
  counts[OUTSIDE.format('events')] = int((~core).sum())
  for what, codes in (('users', users), ('items', items)):
    before, after = (len(np.unique(codes[at])) for at in (keep, keep[core]))
    counts[OUTSIDE.format(what)] = before - after
  keep = keep[core]

  keep = keep[np.lexsort((fractions[keep], raw.times[keep]))]  # It is stable.
  start_time = int(raw.times[keep[0]])
  times = raw.times[keep] - start_time
  # Times are int32 on the device.
  if times[-1] > np.iinfo(np.int32).max:
    raise InputError(
      f'config.data.time_unit: the log spans {times[-1]} seconds '
      f'({raw.source}); at most {np.iinfo(np.int32).max} (68 years) are allowed'
    )
  train_end, validation_end = split_points(times)

  users, user_rows = _number_from_one(users[keep])
  items, item_rows = _number_from_one(items[keep])
  item_ids = item_ids[item_rows]
  titles, categories, brands = _texts(raw, item_ids)
  if len(raw.item_ids):
    counts[NOT_IN_TABLE] = int((~np.isin(item_ids, raw.item_ids)).sum())
  counts |= _summary(
    users, items, times, train_end=train_end, validation_end=validation_end
  )
  return EventLog(
    users=users,
    items=items,
    times=times,
    user_ids=_padded(user_ids[user_rows]),
    item_ids=_padded(item_ids),
    titles=titles,
    categories=categories,
    brands=brands,
    train_end=train_end,
    validation_end=validation_end,
    start_time=start_time,
    counts=counts,
    source=raw.source,
    simulated=raw.simulated,
    fingerprint=fingerprint,
  )


def first_occurrences(
  users: np.ndarray,
  items: np.ndarray,
  times: np.ndarray,
  fractions: np.ndarray,
) -> np.ndarray:
  """Marks the first event of every (user, item, time).

  Args:
    users, items: i64[events], numbered.
    times: i64[events], seconds.
    fractions: i64[events], nanoseconds since those seconds.

  Returns:
    bool[events].
  """
  order = np.lexsort((items, users, fractions, times))  # It is stable.
  new = np.zeros(len(order), bool)
  new[:1] = True
  for column in (users, items, times, fractions):
    column = column[order]
    new[1:] |= column[1:] != column[:-1]
  first = np.empty(len(order), bool)
  first[order] = new
  return first


def sampled_users(user_ids: np.ndarray, share: float, seed: int) -> np.ndarray:
  """Draws a share of the users, at least one.

  Which ones does not depend on the order of the users.

  Args:
    user_ids: str[users].
    share: of the users that are kept, above 0.
    seed: of the draw.

  Returns:
    bool[users], True for those drawn.
  """
  drawn = np.random.default_rng(seed).permutation(len(user_ids))
  drawn = drawn[: max(1, round(share * len(user_ids)))]
  keep = np.zeros(len(user_ids), bool)
  keep[np.argsort(user_ids, kind='stable')[drawn]] = True
  return keep


def k_core(
  users: np.ndarray, items: np.ndarray, min_user_items: int, min_item_users: int
) -> np.ndarray:
  """Marks the events of the core (SPEC 2.2), bool[events].

  The core is the largest part of the log in which every user has at least
  `min_user_items` distinct items and every item at least `min_item_users`
  distinct users.

  Args:
    users, items: i64[events], numbered from 0.
  """
  if not len(users):
    return np.zeros(0, bool)
  num_users, num_items = users.max() + 1, items.max() + 1
  pairs = np.unique(users * num_items + items)
  pair_users, pair_items = pairs // num_items, pairs % num_items
  while True:
    user_good = np.bincount(pair_users, minlength=num_users) >= max(
      min_user_items, 1
    )
    item_good = np.bincount(pair_items, minlength=num_items) >= max(
      min_item_users, 1
    )
    good = user_good[pair_users] & item_good[pair_items]
    if good.all():
      return user_good[users] & item_good[items]
    pair_users, pair_items = pair_users[good], pair_items[good]


def _core(
  users: np.ndarray,
  items: np.ndarray,
  data_config: ml_collections.ConfigDict,
  source: str,
) -> np.ndarray:
  """Marks the events of the core, bool[events], which must not be empty."""
  least_items = data_config.min_user_items
  least_users = data_config.min_item_users
  core = k_core(users, items, least_items, least_users)
  if not core.any():
    raise InputError(
      f'config.data.min_user_items={least_items}, '
      f'config.data.min_item_users={least_users}: '
      f'nothing is left of {len(np.unique(users))} users, '
      f'{len(np.unique(items))} items and {len(users)} events '
      f'({source}); lower thresholds or a longer log are needed'
    )
  return core


def split_points(times: np.ndarray) -> tuple[int, int]:
  """Where training and validation end: 70 and 85 % of the events (SPEC 2.2).

  A boundary inside a group of equal times moves back to the group's start.

  Args:
    times: i64[events], ascending.

  Raises:
    InputError: for fewer than three events, or if a split is empty.
  """
  num_events = len(times)
  if num_events < 3:
    raise InputError(
      f'config.data.events: {num_events} events are left; at least 3 are '
      'needed to split them into training, validation and test'
    )
  ends = [
    int(np.searchsorted(times, times[num_events * percent // 100]))
    for percent in (70, 85)
  ]
  sizes = np.diff([0, *ends, num_events])
  if not sizes.all():
    part = ('training', 'validation', 'test')[int(sizes.argmin())]
    raise InputError(
      f'config.data.events: the {part} part of the 70 / 15 / 15 split is '
      f'empty: {num_events} events at {len(np.unique(times))} distinct times '
      'cannot be split by time; more events at distinct times are needed'
    )
  return ends[0], ends[1]


def _number_from_one(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Numbers codes from 1 in order of first appearance.

  Returns:
    i32[events], the numbers, and i64[distinct], the code of each number.
  """
  distinct, first, inverse = np.unique(
    codes, return_index=True, return_inverse=True
  )
  order = np.argsort(first)
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(1, len(order) + 1)
  return rank[inverse], distinct[order]


def _texts(raw: RawLog, item_ids: np.ndarray) -> list[np.ndarray]:
  """Titles, categories and brands by item number; '' where there is none."""
  # The log's items come first, so that each one's number is its row here.
  codes, _ = text_columns.number(np.concatenate([item_ids, raw.item_ids]))
  table = codes[len(item_ids) :]
  known = table < len(item_ids)
  columns = []
  for column in (raw.titles, raw.categories, raw.brands):
    text = np.full(len(item_ids), '', object)
    text[table[known]] = column[known]
    columns.append(_padded(text))
  return columns


def _padded(column: np.ndarray) -> np.ndarray:
  """Puts the padding row before the first."""
  return np.concatenate([np.array([''], object), column])


def _summary(
  users: np.ndarray,
  items: np.ndarray,
  times: np.ndarray,
  train_end: int,
  validation_end: int,
) -> dict[str, int]:
  """What a prepared log has, counted for reports."""
  groups = np.unique(times, return_counts=True)[1]
  return {
    'users': int(users.max()),
    'items': int(items.max()),
    'events': len(users),
    'training events': train_end,
    'validation events': validation_end - train_end,
    'test events': len(users) - validation_end,
    'distinct times': len(groups),
    'events in the largest group of equal times': int(groups.max()),
  }
