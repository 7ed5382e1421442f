"""Small event logs, built by hand."""

import hashlib

import numpy as np
import pytest

from dynllm_jax.types import EventLog

MONDAY = 1_609_718_400  # unix seconds of Monday, 4 January 2021, midnight


def small_log(
  events, titles=('a', 'b', 'c'), categories=None, brands=None, num_users=None
):
  """A log of `events`, tuples (user, item, seconds); items count from 1."""
  events = sorted(events, key=lambda event: event[2])
  users, items, times = (
    np.array([event[k] for event in events], dtype)
    for k, dtype in enumerate((np.int32, np.int32, np.int64))
  )
  num_users = num_users or max([event[0] for event in events], default=0)

  def text(column):
    return np.array(['', *(column or [''] * len(titles))])

  return EventLog(
    users=users,
    items=items,
    times=times,
    user_ids=np.array(['', *(f'u{k + 1}' for k in range(num_users))]),
    item_ids=np.array(['', *(f'i{k + 1}' for k in range(len(titles)))]),
    titles=text(titles),
    categories=text(categories),
    brands=text(brands),
    train_end=len(events),
    validation_end=len(events),
    start_time=MONDAY,
    counts={},
    source='made by hand',
    simulated=True,
    fingerprint=hashlib.sha256(
      repr((events, titles, categories, brands)).encode()
    ).hexdigest(),
  )


@pytest.fixture(name='make_log', scope='session')
def fixture_make_log():
  return small_log
