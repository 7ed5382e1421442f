"""What has come to a log since it was prepared (SPEC 10.6)."""

from typing import NamedTuple

import numpy as np

from dynllm_jax.datasets import prepare
from dynllm_jax.datasets.reading import text_columns
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog


class NewEvents(NamedTuple):
  """Events in order of time.

  Attributes:
    users, items: str[events].
    times: i64[events], unix seconds.
    texts: title, category and brand by item, of items that the log lacks.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  texts: dict[str, tuple[str, str, str]]


def new_events(raw: RawLog, log: EventLog, where: str) -> NewEvents:
  """The events of a log that follow those that it had.

  Args:
    raw: the log as it is read now.
    log: as it was prepared.
    where: the run folder whose log that is, for the error.

  Raises:
    InputError: naming the first event of `log` that is not where it was.
  """
  users, user_ids = text_columns.number(raw.users)
  items, item_ids = text_columns.number(raw.items)
  fractions = raw.fractions
  if fractions is None:
    fractions = np.zeros(len(users), np.int64)
  keep = np.flatnonzero(
    prepare.first_occurrences(users, items, raw.times, fractions)
  )
  keep = keep[np.lexsort((fractions[keep], raw.times[keep]))]
  users, items, times = users[keep], items[keep], raw.times[keep]

  # Rows of the log that both ids are in; they begin with the log itself.
  known = np.isin(user_ids, log.user_ids)[users]
  known &= np.isin(item_ids, log.item_ids)[items]
  had = np.flatnonzero(known)[: log.num_events]
  columns = (
    (user_ids[users[had]], log.user_ids[log.users]),
    (item_ids[items[had]], log.item_ids[log.items]),
    (times[had], log.times + log.start_time),
  )
  same = np.zeros(log.num_events, bool)
  same[: len(had)] = np.logical_and.reduce(
    [now == then[: len(had)] for now, then in columns]
  )
  if not same.all():
    first = int(np.argmin(same))
    was = [str(then[first]) for _, then in columns]
    now = [str(now[first]) for now, _ in columns if first < len(had)]
    raise InputError(
      f'config.data.events: event {first + 1} of the log of {where} was user '
      f'{was[0]!r}, item {was[1]!r}, time {was[2]}, and is {now or "not there"}'
      ' now; allowed: that log, or one to which events have been added at its '
      'end'
    )

  is_new = times > log.start_time + log.times[-1]
  is_new |= known
  is_new[had] = False
  new_items = item_ids[items[is_new]]
  wanted = set(new_items) - set(log.item_ids)
  table = zip(raw.item_ids, raw.titles, raw.categories, raw.brands, strict=True)
  return NewEvents(
    users=user_ids[users[is_new]],
    items=new_items,
    times=times[is_new],
    texts={item: tuple(texts) for item, *texts in table if item in wanted},
  )
