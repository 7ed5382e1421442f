"""Preparation against slow plain-Python oracles (SPEC 2.2)."""

import collections

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from dynllm_jax.datasets import prepare
from dynllm_jax.types import InputError
from dynllm_jax.types import RawLog


def _raw(rows, table=()):
  users, items, times = zip(*rows)
  columns = [
    np.array(column, object)
    for column in (zip(*table) if table else ((), (), (), ()))
  ]
  return RawLog(
    np.array(users, object),
    np.array(items, object),
    np.array(times, np.int64),
    *columns,
    {'rows read': len(rows)},
    'a test',
  )


def _core_oracle(rows, min_user_items, min_item_users):
  """Drops one bad user or item at a time."""
  rows = list(rows)
  while True:
    of_user, of_item = (collections.defaultdict(set) for _ in range(2))
    for user, item in rows:
      of_user[user].add(item)
      of_item[item].add(user)
    bad = [
      ('u', u) for u, own in of_user.items() if len(own) < min_user_items
    ] + [('i', i) for i, own in of_item.items() if len(own) < min_item_users]
    if not bad:
      return rows
    side, node = bad[0]
    rows = [row for row in rows if row['ui'.index(side)] != node]


pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=60)


@hypothesis.given(pairs, st.integers(0, 4), st.integers(0, 4))
@hypothesis.settings(deadline=None)
def test_k_core_is_the_oracle(rows, min_user_items, min_item_users):
  users = np.array([u for u, _ in rows], np.int64)
  items = np.array([i for _, i in rows], np.int64)
  core = prepare.k_core(users, items, min_user_items, min_item_users)
  kept = [row for row, keep in zip(rows, core) if keep]
  assert kept == _core_oracle(rows, min_user_items, min_item_users)


def _split_oracle(times):
  """Ends of training and validation in sorted times; None if one is empty."""
  ends = []
  for percent in (70, 85):
    end = len(times) * percent // 100
    while end > 0 and times[end - 1] == times[end]:
      end -= 1
    ends.append(end)
  return tuple(ends) if 0 < ends[0] < ends[1] else None


@hypothesis.given(st.lists(st.integers(0, 12), min_size=3, max_size=60))
@hypothesis.settings(deadline=None)
def test_split_is_the_oracle(times):
  times = sorted(times)
  ends = _split_oracle(times)
  if ends is None:
    with pytest.raises(InputError, match='distinct times'):
      prepare.split_points(np.array(times))
  else:
    assert prepare.split_points(np.array(times)) == ends


@hypothesis.given(
  st.lists(
    st.tuples(*[st.integers(0, 2)] * 4),
    max_size=40,
  )
)
@hypothesis.settings(deadline=None)
def test_first_occurrences_is_the_oracle(rows):
  columns = [np.array([row[k] for row in rows], np.int64) for k in range(4)]
  first = [row not in rows[:n] for n, row in enumerate(rows)]
  assert prepare.first_occurrences(*columns).tolist() == first


events = st.lists(
  st.tuples(
    st.sampled_from('abcde'),
    st.sampled_from('vwxyz'),
    st.integers(10**9, 10**9 + 20),
  ),
  min_size=12,
  max_size=60,
)


@hypothesis.given(events)
@hypothesis.settings(
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_prepare_is_the_oracle(make_config, rows):
  config = make_config(min_user_items=2, min_item_users=2)
  kept = list(dict.fromkeys(rows))
  core = set(_core_oracle([row[:2] for row in kept], 2, 2))
  kept = sorted((row for row in kept if row[:2] in core), key=lambda r: r[2])
  if _split_oracle([row[2] for row in kept]) is None:
    with pytest.raises(InputError):
      prepare.prepare(_raw(rows), config, 'key')
    return
  log = prepare.prepare(_raw(rows), config, 'key')
  assert log.user_ids[log.users].tolist() == [row[0] for row in kept]
  assert log.item_ids[log.items].tolist() == [row[1] for row in kept]
  assert log.times.tolist() == [row[2] - kept[0][2] for row in kept]
  assert log.start_time == kept[0][2]
  for ids, column in ((log.user_ids, 0), (log.item_ids, 1)):
    assert ids.tolist() == ['', *dict.fromkeys(row[column] for row in kept)]
  assert log.users.dtype == log.items.dtype == np.int32
  assert log.times.dtype == np.int64
  dropped = (
    log.counts['exact duplicates dropped']
    + log.counts['events outside of the core']
  )
  assert dropped == len(rows) - log.num_events
  assert log.counts['events'] == log.num_events == len(kept)
  assert (
    log.counts['training events']
    == log.train_end
    < log.validation_end
    < log.num_events
  )
  assert log.counts['distinct times'] == len(set(log.times.tolist()))
  assert log.fingerprint == 'key'


def test_texts_follow_the_items(make_config):
  rows = [('u', item, 10**9 + n) for n, item in enumerate('dbca')]
  table = [
    ('a', 'A', 'x', ''),
    ('none', 'N', 'n', 'n'),
    ('b', 'B', '', 'y'),
    ('c', 'C', 'z', 'z'),
  ]
  log = prepare.prepare(_raw(rows, table), make_config())
  assert log.item_ids.tolist() == ['', 'd', 'b', 'c', 'a']
  assert log.titles.tolist() == ['', '', 'B', 'C', 'A']
  assert log.categories.tolist() == ['', '', '', 'z', 'x']
  assert log.brands.tolist() == ['', '', 'y', 'z', '']


def test_sampling_keeps_whole_users(make_config):
  rows = [(f'u{n % 50}', f'i{n}', 10**9 + n) for n in range(500)]
  logs = [
    prepare.prepare(
      _raw(order), make_config(sample_users=share, sample_seed=seed)
    )
    for order, share, seed in [
      (rows, 0.3, 1),
      (rows[::-1], 0.3, 1),
      (rows, 0.3, 2),
      (rows, 1.0, 1),
    ]
  ]
  assert [log.num_users for log in logs] == [15, 15, 15, 50]
  assert logs[0].num_events == 15 * 10
  assert logs[0].counts['users left out by sampling'] == 35
  same, other = (set(logs[n].user_ids) for n in (1, 2))
  assert set(logs[0].user_ids) == same != other


def test_sampling_comes_before_the_core(make_config):
  # Everybody buys the same item: with half of the users it has 5 buyers.
  rows = [(f'u{n}', 'i', 10**9 + n) for n in range(10)]
  for threshold in (5, 6):
    config = make_config(sample_users=0.5, min_item_users=threshold)
    if threshold == 5:
      assert prepare.prepare(_raw(rows), config).num_users == 5
    else:
      with pytest.raises(InputError, match='5 users, 1 items and 5 events'):
        prepare.prepare(_raw(rows), config)


def test_nothing_left(make_config):
  rows = [('u', 'i', 10**9 + n) for n in range(5)]
  with pytest.raises(
    InputError,
    match='min_user_items=2.*min_item_users=1: '
    'nothing is left of 1 users, 1 items and 5 events',
  ):
    prepare.prepare(_raw(rows), make_config(min_user_items=2))


def test_too_few_events_or_times(make_config):
  with pytest.raises(InputError, match='2 events are left; at least 3'):
    prepare.prepare(_raw([('u', 'i', 1), ('u', 'j', 2)]), make_config())
  rows = [('u', f'i{n}', n // 10) for n in range(20)]
  with pytest.raises(InputError, match='empty: 20 events at 2 distinct times'):
    prepare.prepare(_raw(rows), make_config())


def test_the_span_must_fit_32_bits(make_config):
  rows = [('u', 'i', 0), ('u', 'j', 5), ('u', 'l', 6), ('u', 'k', 2**31 - 1)]
  assert prepare.prepare(_raw(rows), make_config()).times[-1] == 2**31 - 1
  rows[-1] = ('u', 'k', 2**31)
  with pytest.raises(InputError, match='spans 2147483648 seconds'):
    prepare.prepare(_raw(rows), make_config())
