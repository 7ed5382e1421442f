"""Facets that rest on purchases which have not been observed yet (SPEC 10.1).

The prepared log has the facets of all its windows. A state that knows the log
up to a point only must not read those that a later purchase went into, even
where it is asked about a time after their close.
"""

import jax.numpy as jnp
import numpy as np

from dynllm_jax.facets import windows
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank

# A close that is later than any question.
_NEVER = np.int32(np.iinfo(np.int32).max)


class WithheldFacets:
  """Which facets are withheld, until their purchases have been observed.

  It has no state: what may be read follows from the events observed.

  Args:
    log: the prepared log.
    window_days: `config.facets.window_days`.
    end: events of the log that are known.
  """

  def __init__(self, log: EventLog, window_days: float, end: int) -> None:
    profiles = windows.profiles(log, windows.window_seconds(window_days))
    self._log, self._profiles = log, profiles
    self._rows = np.flatnonzero(profiles.order[profiles.last - 1] >= end)
    # A user's events begin here in `order`; a row rests on the first few.
    counts = np.bincount(log.users, minlength=log.num_users + 1)
    self._first = np.cumsum(counts) - counts
    users = profiles.users[self._rows]
    self._keys = self._key(
      users, profiles.last[self._rows] - self._first[users]
    )

  def withhold(self, bank: FacetBank) -> FacetBank:
    """The bank without them."""
    closes = jnp.asarray(bank.closes)
    return bank.replace(closes=closes.at[self._rows].set(_NEVER))

  def released(
    self, bank: FacetBank, users: np.ndarray, user_graph: GrowingGraph
  ) -> FacetBank:
    """The bank with those that some users' events now suffice for.

    A facet is released where the user's first events are those of the log, all
    that it has read among them. Each is looked at once, when there are as many.

    Args:
      bank: of `withhold`, or of this function.
      users: i32[events], who had events that are new in the graph; users whom
        the log does not have own no facets.
      user_graph: the events so far.
    """
    known, more = np.unique(users, return_counts=True)
    there = known <= self._log.num_users
    known, more = known[there], more[there]
    counts = user_graph.ends[known] - user_graph.starts[known]
    first, last = (
      np.searchsorted(self._keys, self._key(known, had), 'right')
      for had in (counts - more, counts)
    )

    rows = [
      row
      for user in np.flatnonzero(first < last)
      for row in self._rows[first[user] : last[user]].tolist()
      if self._is_observed(row, user_graph)
    ]
    if not rows:
      return bank
    closes = jnp.asarray(bank.closes)
    return bank.replace(
      closes=closes.at[np.array(rows)].set(
        self._profiles.closes[rows].astype(np.int32)
      )
    )

  def _key(self, users: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """i64: ascends by user, then by the number of the user's first events."""
    most = self._log.num_events
    return users.astype(np.int64) * (most + 1) + np.minimum(counts, most)

  def _is_observed(self, row: int, user_graph: GrowingGraph) -> bool:
    """Whether the events that a facet has read, and those before, are there."""
    profiles, log = self._profiles, self._log
    user = int(profiles.users[row])
    wanted = profiles.order[self._first[user] : profiles.last[row]]
    items, times = user_graph.row(user)
    count = len(wanted)
    return bool(
      len(items) >= count
      and np.array_equal(items[:count], log.items[wanted])
      and np.array_equal(times[:count], log.times[wanted])
    )
