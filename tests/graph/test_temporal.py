"""Neighborhoods and features against plain Python, event by event."""

import bisect
import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import temporal
from dynllm_jax.graph import training_graph
from tests.testing import logs

NUM_NODES, NUM_OTHERS, NUM_EVENTS, NUM_TIMES = 4, 5, 24, 9
NEIGHBORS = 3
HOUR, DAY = 3_600, 86_400
SCALE = 6 * DAY + 3 * HOUR  # between two times: five make 30.6 days

# A list of (node, other, time); a fixed length compiles once.
EVENTS = st.lists(
  st.tuples(
    st.integers(1, NUM_NODES),
    st.integers(1, NUM_OTHERS),
    st.integers(0, NUM_TIMES - 1),
  ),
  min_size=NUM_EVENTS,
  max_size=NUM_EVENTS,
).map(lambda events: sorted(events, key=lambda event: event[2]))

_neighborhood = jax.jit(temporal.neighborhood, static_argnums=3)
_skipping = jax.jit(temporal.neighborhood, static_argnums=3)
_count_before = jax.jit(temporal.count_before)
_features = jax.jit(temporal.event_features)
_lower_bound = jax.jit(temporal.lower_bound, static_argnums=4)
_takes = jax.jit(temporal.takes_at_that_time)


def build(events):
  nodes, others, times = np.array(events, np.int32).reshape(-1, 3).T
  return jax.tree.map(
    jnp.asarray,
    logs.one_shape(
      temporal.temporal_graph(nodes, others, times * SCALE, NUM_NODES)
    ),
  )


def queries():
  """Every node, padding too, at every time, one past the last included."""
  nodes, times = np.mgrid[0 : NUM_NODES + 1, 0 : NUM_TIMES + 1]
  return nodes.astype(np.int32), times.astype(np.int32)


def past(events, node, time):
  """What a node did strictly before a time, most recent first."""
  return [
    (other, t) for n, other, t in reversed(events) if n == node and t < time
  ]


@given(EVENTS)
@settings(max_examples=40)
def test_neighborhood_is_the_strictly_earlier_past(events):
  nodes, times = queries()
  found = _neighborhood(build(events), nodes, times * SCALE, NEIGHBORS)
  assert found.nodes.shape == (*nodes.shape, NEIGHBORS)
  for at in np.ndindex(nodes.shape):
    kept = past(events, nodes[at], times[at])[:NEIGHBORS]
    pad = NEIGHBORS - len(kept)
    assert found.nodes[at].tolist() == [o for o, _ in kept] + [0] * pad
    assert found.times[at].tolist() == [t * SCALE for _, t in kept] + [0] * pad
    assert found.mask[at].tolist() == [True] * len(kept) + [False] * pad


@given(events=EVENTS, skip=st.integers(-2, 5))
@settings(max_examples=20)
def test_the_most_recent_are_passed_over(events, skip):
  nodes, times = queries()
  found = _skipping(
    build(events), nodes, times * SCALE, NEIGHBORS, jnp.int32(skip)
  )
  for at in np.ndindex(nodes.shape):
    whole = [None] * max(0, -skip) + past(events, nodes[at], times[at])
    rest = (whole[max(0, skip) :] + [None] * NEIGHBORS)[:NEIGHBORS]
    assert found.mask[at].tolist() == [event is not None for event in rest]
    assert found.nodes[at].tolist() == [e[0] if e else 0 for e in rest]


def test_the_whole_past_is_visited_a_block_at_a_time(monkeypatch):
  monkeypatch.setattr(temporal, '_PAST_BLOCK', 2)
  rng = np.random.default_rng(0)
  events = sorted(
    zip(*(rng.integers(1, high, 24) for high in (4, 5, 9))), key=lambda e: e[2]
  )
  nodes, times = (x.reshape(-1) for x in queries())
  graph = build(events)

  def add(carry, past):
    found, blocks = carry
    place = jnp.where(past.mask, past.nodes, NUM_OTHERS + 1)
    row = jnp.arange(len(nodes))[:, None]
    return found.at[row, place].add(1, mode='drop'), blocks + 1

  nothing = jnp.zeros([len(nodes), NUM_OTHERS + 1], jnp.int32), 0
  found, blocks = jax.jit(
    lambda: temporal.fold_past(graph, nodes, times * SCALE, add, nothing)
  )()
  for row, node, time in zip(found, nodes, times):
    items = [other for other, _ in past(events, node, time)]
    assert row.tolist() == np.bincount(items, minlength=6).tolist()
  assert blocks == -(-int(found.sum(axis=1).max()) // 2)


def test_among_equal_times_the_later_in_the_file_is_more_recent():
  found = _neighborhood(
    build([(1, 2, 0), (1, 5, 1), (1, 3, 1), (1, 4, 1), (1, 1, 2)]),
    jnp.array([1]),
    jnp.array([2 * SCALE]),
    NEIGHBORS,
  )
  assert found.nodes.tolist() == [[4, 3, 5]]
  assert found.times.tolist() == [[SCALE, SCALE, SCALE]]


def test_an_event_does_not_see_its_own_time():
  one_event = build([(1, 2, 3)])
  at = 3 * SCALE + np.array([-1, 0, 1])
  found = _neighborhood(one_event, np.ones(3, np.int32), at, 1)
  assert found.mask.tolist() == [[False], [False], [True]]
  assert _count_before(one_event, np.ones(3, np.int32), at).tolist() == [
    0,
    0,
    1,
  ]


def test_a_time_is_broadcast_over_nodes():
  events = [(1, 2, 0), (2, 3, 1)]
  found = _neighborhood(
    build(events), jnp.array([[1, 2]]), jnp.array([[SCALE]]), 1
  )
  assert found.nodes.tolist() == [[[2], [0]]]


@given(EVENTS)
@settings(max_examples=25)
def test_count_before(events):
  nodes, times = queries()
  found = np.asarray(_count_before(build(events), nodes, times * SCALE))
  for at in np.ndindex(nodes.shape):
    assert found[at] == len(past(events, nodes[at], times[at]))


@given(
  st.lists(st.integers(-9, 9), min_size=13, max_size=13),
  st.lists(
    st.tuples(st.integers(0, 13), st.integers(0, 13), st.integers(-10, 10)),
    min_size=6,
    max_size=6,
  ),
)
@settings(max_examples=50)
def test_lower_bound_is_bisect_left(values, slices):
  low, high, target = np.array(
    [(min(a, b), max(a, b), target) for a, b, target in slices], np.int32
  ).T
  # Ascending within each slice is all that is asked for; sorted is simplest.
  values = sorted(values)
  longest = int(max(high - low))
  found = _lower_bound(np.array(values, np.int32), low, high, target, longest)
  assert found.tolist() == [
    bisect.bisect_left(values, time, start, end)
    for start, end, time in zip(low, high, target)
  ]


def test_lower_bound_stays_in_its_slice():
  values = np.array([5, 6, 0, 1, 7, 8], np.int32)
  ask = lambda low, high, target: int(
    _lower_bound(values, jnp.int32(low), jnp.int32(high), jnp.int32(target), 2)
  )
  assert ask(2, 4, -1) == 2
  assert ask(2, 4, 1) == 3
  assert ask(2, 4, 9) == 4
  assert ask(3, 3, 0) == 3


@given(EVENTS)
@settings(max_examples=25)
def test_event_features(events):
  nodes, times = queries()
  found = np.asarray(_features(build(events), nodes, times * SCALE))
  assert found.shape == (*nodes.shape, temporal.FEATURE_DIM)
  for at in np.ndindex(nodes.shape):
    before = [t for _, t in past(events, nodes[at], times[at])]
    month = [t for t in before if (times[at] - t) * SCALE <= 30 * DAY]
    days = (times[at] - before[0]) * SCALE / DAY if before else 0.0
    np.testing.assert_allclose(
      found[at],
      [
        float(bool(before)),
        math.log1p(days),
        math.log1p(len(month)),
        math.log1p(len(before)),
      ],
      rtol=1e-6,
    )


def test_a_month_is_thirty_days_to_the_second():
  one_event = build([(1, 2, 0)])
  at = 30 * DAY + np.array([-1, 1], np.int32)
  found = _features(one_event, np.ones(2, np.int32), at)
  np.testing.assert_allclose(found[:, 2], [math.log(1 + 1), 0.0], rtol=1e-6)


def test_a_day_is_taken_in_integers():
  # float32 would round both times to a multiple of 128 seconds.
  late = 1_500_000_000
  assert float(temporal.days_between(late + 3, late)) == np.float32(3 / DAY)


@given(EVENTS)
@settings(max_examples=25)
def test_takes_at_that_time(events):
  users, items, times = np.array(events).T
  log = logs.make_log(users, items, times, NUM_NODES, NUM_OTHERS)
  same = logs.one_shape(temporal.same_time_items(log))
  asked = np.tile(np.arange(NUM_OTHERS + 2, dtype=np.int32), (NUM_EVENTS, 1))
  found = np.asarray(_takes(same, np.arange(NUM_EVENTS), asked))
  for event, (user, _, time) in enumerate(events):
    own = {i for u, i, t in events if (u, t) == (user, time)}
    assert found[event].tolist() == [i in own for i in asked[event]]


@given(EVENTS)
@settings(max_examples=50)
def test_mean_return_days(events):
  users, items, times = np.array(events).T
  log = logs.make_log(users, items, times * SCALE, NUM_NODES, NUM_OTHERS)
  gaps = []
  for user, _, time in events[: log.train_end]:
    earlier = [
      t for u, _, t in events[: log.train_end] if u == user and t < time
    ]
    if earlier:
      gaps.append((time - max(earlier)) * SCALE / DAY)
  expected = sum(gaps) / len(gaps) if gaps else 1.0
  assert training_graph.mean_return_days(log) == pytest.approx(
    expected, rel=1e-12
  )


def test_mean_return_days_counts_each_event_and_training_alone():
  # Trained on: user 1 at 0, 2, 2 and 5 days, user 2 at 0 days.
  days = [0, 0, 2, 2, 5, 8, 9]
  log = logs.make_log(
    [1, 2, 1, 1, 1, 1, 2], [1, 1, 1, 2, 1, 1, 1], [d * DAY for d in days]
  )
  assert log.train_end == 4
  assert training_graph.mean_return_days(log) == (2 + 2) / 2
  log = logs.make_log(
    [1, 2, 1, 1, 1, 1, 2, 2, 2, 2],
    [1, 1, 1, 2, 1] + [1] * 5,
    [d * DAY for d in days + [10, 11, 12]],
  )
  assert log.train_end == 7
  assert training_graph.mean_return_days(log) == (2 + 2 + 3 + 3 + 9) / 5


@pytest.mark.parametrize('seed', range(4))
def test_the_longest_row_is_long_enough(seed):
  """The search stops after as many rounds as the longest row needs."""
  log = logs.random_log(seed, num_events=20 + 7 * seed, num_times=6)
  rows = temporal.temporal_graph(log.users, log.items, log.times, log.num_users)
  assert rows.longest == max(
    np.sum(log.users == user) for user in range(1, log.num_users + 1)
  )
  users, times = np.meshgrid(
    np.arange(log.num_users + 1), np.append(log.times, log.times[-1] + 1)
  )
  found = temporal.count_before(
    jax.tree.map(jnp.asarray, rows), users, times.astype(np.int32)
  )
  for at in np.ndindex(users.shape):
    assert found[at] == np.sum(
      (log.users == users[at]) & (log.times < times[at])
    )
  same = temporal.same_time_items(log)
  own = [
    set(log.items[(log.users == user) & (log.times == time)].tolist())
    for user, time in zip(log.users, log.times)
  ]
  assert same.longest == max(map(len, own))
  asked = np.tile(np.arange(log.num_items + 1), (log.num_events, 1))
  found = temporal.takes_at_that_time(
    jax.tree.map(jnp.asarray, same), np.arange(log.num_events), asked
  )
  assert found.tolist() == [
    [item in items for item in range(log.num_items + 1)] for items in own
  ]


def test_empty_graph_has_no_past():
  empty = build([])
  nodes, times = queries()
  found = _neighborhood(empty, nodes, times, NEIGHBORS)
  assert not np.any(found.mask)
  assert not np.any(found.nodes) and not np.any(found.times)
  assert not np.any(_count_before(empty, nodes, times))
  assert not np.any(_features(empty, nodes, times))


def test_a_row_keeps_the_order_of_the_log():
  rows = temporal.temporal_graph(
    np.array([2, 1, 2, 2]), np.array([4, 3, 2, 1]), np.array([0, 5, 5, 5]), 3
  )
  assert rows.offsets.tolist() == [0, 0, 1, 4, 4]
  assert rows.neighbors.tolist() == [3, 4, 2, 1]
  assert rows.times.tolist() == [5, 0, 5, 5]


@pytest.mark.parametrize('how', ['change', 'permute', 'truncate'])
@pytest.mark.parametrize('seed', range(3))
def test_the_future_leaves_no_trace(how, seed):
  rng = np.random.default_rng(seed)

  def draw(low, count):
    return list(
      zip(
        rng.integers(1, NUM_NODES + 1, count).tolist(),
        rng.integers(1, NUM_OTHERS + 1, count).tolist(),
        sorted(rng.integers(low, NUM_TIMES, count).tolist()),
      )
    )

  time = 4
  earlier = [e for e in draw(0, 30) if e[2] < time][:12]
  future = draw(time, NUM_EVENTS - len(earlier))
  other = {
    'change': draw(time, len(future)),
    'permute': [
      (*future[k][:2], future[place][2])
      for place, k in enumerate(rng.permutation(len(future)))
    ],
    'truncate': [],
  }[how]
  assert other != future
  nodes, times = queries()
  seen = times <= time
  for read in (
    lambda g: _neighborhood(g, nodes, times * SCALE, NEIGHBORS),
    lambda g: _features(g, nodes, times * SCALE),
  ):
    one, two = read(build(earlier + future)), read(build(earlier + other))
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(
        np.asarray(a)[seen], np.asarray(b)[seen]
      ),
      one,
      two,
    )
