"""Windows, against a plain reading of the rule event by event."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from dynllm_jax.facets import windows
from dynllm_jax.types import InputError

MAX = 2**31 - 1
EVENTS = st.lists(
  st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 60)),
  max_size=25,
)


def oracle(log, window):
  """{(user, close): event positions, oldest first}, in the order of rows."""
  found = {}
  for user in range(1, log.num_users + 1):
    for k in range(1, 70):
      close = k * window
      events = [
        e
        for e in range(log.num_events)
        if log.users[e] == user and close - window <= log.times[e] < close
      ]
      if events:
        found[user, close] = events
  return found


def read(log, window):
  rows = windows.profiles(log, window)
  return {
    (int(rows.users[r]), int(rows.closes[r])): rows.order[
      rows.first[r] : rows.last[r]
    ].tolist()
    for r in range(len(rows))
  }


@given(EVENTS, st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_against_oracle(make_log, events, window):
  log = make_log(events, num_users=5)
  got, expected = read(log, window), oracle(log, window)
  assert got == expected
  assert list(got) == list(expected)


def test_a_purchase_at_the_close_belongs_to_the_next_window(make_log):
  log = make_log([(1, 1, 9), (1, 2, 10), (1, 3, 19), (1, 1, 20)])
  assert read(log, 10) == {(1, 10): [0], (1, 20): [1, 2], (1, 30): [3]}


def test_users_without_purchase_have_no_profile(make_log):
  log = make_log([(2, 1, 5)], num_users=3)
  assert read(log, 10) == {(2, 10): [0]}
  assert not len(windows.profiles(make_log([], num_users=3), 10))


def test_newest_first_and_capped(make_log):
  log = make_log([(1, 1, 1), (2, 1, 2), (1, 2, 3), (1, 3, 3)])
  rows = windows.profiles(log, 10)
  assert rows.newest(0, 50).tolist() == [3, 2, 0]
  assert rows.newest(0, 2).tolist() == [3, 2]
  assert rows.newest(1, 2).tolist() == [1]


def test_windows_open_at_the_end_stay_unless_they_outgrow_int32(make_log):
  window = 1000
  top = MAX // window * window
  log = make_log([(1, 1, top - 1), (1, 1, top), (1, 1, MAX)])
  assert read(log, window) == {(1, top): [0]}
  log = make_log([(1, 1, 5), (1, 1, MAX - 1)])
  assert read(log, MAX) == {(1, MAX): [0, 1]}


def test_window_seconds():
  assert windows.window_seconds(30.0) == 30 * 24 * 3600
  assert windows.window_seconds(1 / 86_400) == 1


@pytest.mark.parametrize('days', [0, -1, 1e-9, 1e6, float('nan'), float('inf')])
def test_window_out_of_range(days):
  with pytest.raises(
    InputError, match='config.facets.window_days: .*; allowed'
  ):
    windows.window_seconds(days)
