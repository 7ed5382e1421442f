"""What has come to a log since it was prepared; what is no growth is named."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import growth
from dynllm_jax.datasets import prepare
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog


def raw_log(rows, texts=()):
  """A log of (user, item, time); `texts` are (item, title)."""
  columns = [np.array(c, object) for c in zip(*rows)]
  titles = np.array([title for _, title in texts], object)
  return RawLog(
    users=columns[0],
    items=columns[1],
    times=columns[2].astype(np.int64),
    item_ids=np.array([item for item, _ in texts], object),
    titles=titles,
    categories=np.full(len(texts), '', object),
    brands=np.full(len(texts), '', object),
    counts={},
    source='a test',
  )


def data_config(least=0):
  config = config_lib.default().data
  config.min_user_items = config.min_item_users = least
  return config


EVENT = st.tuples(
  st.sampled_from('abcde'), st.sampled_from('vwxyz'), st.integers(0, 30)
)


@hypothesis.given(
  st.lists(EVENT, min_size=20, max_size=40),
  st.lists(EVENT, max_size=8),
  st.integers(0, 2),
)
def test_what_is_added_later_is_new(rows, more, least):
  """Of any file and any core: appended rows that are later are all of it."""
  raw = raw_log(rows)
  try:
    log = prepare.prepare(raw, data_config(least))
  except InputError:
    hypothesis.reject()
  end = int(log.start_time + log.times[-1])
  more = [
    (user, item if time % 3 else f'new {item}', end + time)
    for user, item, time in more
  ]
  new = growth.new_events(raw_log([*rows, *more]), log, 'run')
  known = lambda row: row[0] in log.user_ids and row[1] in log.item_ids
  candidates = [r for r in [*rows, *more] if r[2] > end]
  candidates += [r for r in more if r[2] == end and known(r) and r not in rows]
  found = list(zip(new.users, new.items, new.times))
  assert sorted(found) == sorted(set(candidates))
  assert list(new.times) == sorted(new.times)


ROWS = [(f'u{n % 4}', f'i{n % 3}', 100 + n) for n in range(20)]


def test_texts_of_new_items_come_with_them():
  log = prepare.prepare(raw_log(ROWS, [('i0', 'Soap')]), data_config())
  table = [('i0', 'Other soap'), ('new', 'Tea'), ('unseen', 'Mug')]
  rows = [*ROWS, ('u9', 'new', 200), ('u1', 'i0', 201), ('u2', 'bare', 202)]
  new = growth.new_events(raw_log(rows, table), log, 'run')
  assert list(new.users) == ['u9', 'u1', 'u2']
  assert new.texts == {'new': ('Tea', '', '')}


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    (ROWS[1:], "event 1 .* user 'u0', item 'i0', time 100, and is .*u1"),
    (ROWS[:-1], 'event 20 .* is not there'),
    ([*ROWS, ('u0', 'i1', 103)], 'event 5 .*'),
    ([*ROWS[:9], ('u1', 'i0', 999), *ROWS[10:]], 'event 10 .*time 109'),
  ],
)
def test_a_log_that_was_changed_is_no_growth(rows, words):
  log = prepare.prepare(raw_log(ROWS), data_config())
  with pytest.raises(InputError, match=words) as error:
    growth.new_events(raw_log(rows), log, 'runs/shop')
  assert 'runs/shop' in str(error.value)
