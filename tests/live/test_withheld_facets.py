"""A state that knows a part of the log reads no facet of the rest."""

import numpy as np
import pytest

from dynllm_jax.facets import lookup
from dynllm_jax.facets import windows
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.withheld_facets import WithheldFacets
from dynllm_jax.types import FacetBank
from tests.testing import logs

DAYS = 30.0
END = 90


@pytest.fixture
def log():
  return logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=70
  )


def bank_of(log):
  """A text of its own for each profile and facet."""
  profiles = windows.profiles(log, windows.window_seconds(DAYS))
  rows = np.arange(4 * len(profiles), dtype=np.int32)
  return profiles, FacetBank(
    texts=np.zeros([len(rows) + 1, 2], np.float16),
    offsets=np.searchsorted(
      profiles.users, np.arange(log.num_users + 2)
    ).astype(np.int32),
    closes=profiles.closes.astype(np.int32),
    index=1 + rows.reshape(-1, 4),
    longest=len(profiles),
  )


def served(bank, log):
  """Rows that every user reads now and then, also long after the log."""
  times = np.linspace(0, 3 * log.times[-1], 60).astype(np.int32)
  users = np.arange(log.num_users + 1, dtype=np.int32)
  return np.asarray(
    lookup.lookup(bank, *np.broadcast_arrays(users[:, None], times))
  )


def graph_of(log, end):
  events = log.users[:end], log.items[:end], log.times[:end]
  return GrowingGraph(*events, log.num_users)


def test_only_what_rests_on_known_events_serves(log):
  profiles, bank = bank_of(log)
  facets = WithheldFacets(log, DAYS, END)
  rows = served(facets.withhold(bank), log)
  # Of each profile, the position of the last event that it has read.
  last = np.repeat(profiles.order[profiles.last - 1], 4)
  read = rows[rows > 0] - 1
  assert np.all(last[read] < END)
  assert set(range(4 * len(profiles))) - set(read) >= set(
    np.flatnonzero(last >= END)
  )
  assert np.any(last >= END) and len(read)


def test_what_is_observed_releases_them_and_nothing_else_does(log):
  _, bank = bank_of(log)
  facets = WithheldFacets(log, DAYS, END)
  withheld = facets.withhold(bank)
  graph = graph_of(log, END)
  for start in range(END, log.num_events, 7):
    part = slice(start, start + 7)
    users, items, times = log.users[part], log.items[part], log.times[part]
    graph.append(users, items, times)
    withheld = facets.released(withheld, users, graph)
    expected = WithheldFacets(log, DAYS, part.stop).withhold(bank)
    np.testing.assert_array_equal(withheld.closes, expected.closes)
  np.testing.assert_array_equal(withheld.closes, bank.closes)

  # Other items, or a user whom the log does not have.
  withheld, graph = facets.withhold(bank), graph_of(log, END)
  graph.add_nodes(log.num_users + 1)
  users = np.append(log.users[END:], log.num_users + 1)
  graph.append(users, users, np.append(log.times[END:], log.times[-1]))
  released = facets.released(withheld, users, graph)
  unlike = log.users[END:] != log.items[END:]
  some = np.flatnonzero(np.asarray(released.closes) != withheld.closes)
  profiles, _ = bank_of(log)
  for row in some:
    of_row = profiles.order[profiles.first[row] : profiles.last[row]]
    assert not np.any(unlike[of_row[of_row >= END] - END])


def test_after_the_log_a_user_keeps_the_last_one(log):
  """The window that is open at the log's end serves from its close on."""
  _, bank = bank_of(log)
  step = windows.window_seconds(DAYS)
  close = (int(log.times[-1]) // step + 1) * step
  last = int(log.users[-1])
  before, after, later = np.asarray(
    lookup.lookup(
      bank,
      np.full(3, last, np.int32),
      np.array([close - 1, close, close + 9 * step], np.int32),
    )
  )
  assert np.all(before != after)
  np.testing.assert_array_equal(after, later)
  profiles, _ = bank_of(log)
  row = (after[0] - 1) // 4
  assert profiles.closes[row] == close > log.times[-1]
