"""Recency and successors against plain Python, event by event (SPEC 3.12)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import online_counts
from dynllm_jax.graph import recency
from dynllm_jax.graph import successors
from dynllm_jax.types import EventBatch
from tests.testing import logs

NUM_USERS, NUM_ITEMS, NUM_EVENTS, DEPTH, ROWS = 6, 40, 120, 3, 16
LOG = logs.random_log(1, NUM_USERS, NUM_ITEMS, NUM_EVENTS, num_times=50)
_add = jax.jit(online_counts.add, static_argnums=3)


def batches():
  """Whole groups of equal times, with masked rows of real ids."""
  bounds = [0, *np.flatnonzero(np.diff(LOG.times)) + 1, NUM_EVENTS]
  for start, end in zip(bounds[::2], [*bounds[2::2], NUM_EVENTS]):
    if start == end:
      return
    event = np.minimum(np.arange(start, start + ROWS), NUM_EVENTS - 1)
    assert end - start <= ROWS
    yield (
      end,
      EventBatch(
        *(
          jnp.asarray(x[event].astype(np.int32))
          for x in (LOG.users, LOG.items, LOG.times)
        ),
        jnp.arange(start, start + ROWS) < end,
      ),
    )


def counted(num_kept):
  """The counts after each batch, and how many events they hold."""
  graph = logs.random_inputs(LOG).user_graph
  counts = online_counts.empty(NUM_ITEMS, num_kept)
  for end, events in batches():
    counts = _add(counts, graph, events, DEPTH)
    yield end, counts


def transitions(end):
  """f64[items + 1, items + 1], what followed what in the first events."""
  table = np.zeros([NUM_ITEMS + 1, NUM_ITEMS + 1])
  for k in range(end):
    past = [
      LOG.items[j]
      for j in range(k)[::-1]
      if LOG.users[j] == LOG.users[k] and LOG.times[j] < LOG.times[k]
    ]
    for place, item in enumerate(past[:DEPTH]):
      table[item, LOG.items[k]] += 1 / (place + 1)
  return table


def dense(successors):
  if successors.items is None:
    return np.asarray(successors.counts)
  table = np.zeros([NUM_ITEMS + 1, NUM_ITEMS + 1])
  for item, (kept, counts) in enumerate(
    zip(np.asarray(successors.items), np.asarray(successors.counts))
  ):
    real = kept > 0
    assert len(np.unique(kept[real])) == real.sum()
    table[item, kept[real]] = counts[real]
  return table


@pytest.mark.parametrize('num_kept', [NUM_ITEMS, 0])
def test_successors_that_fit_are_counted_exactly(num_kept):
  for end, counts in counted(num_kept):
    expected = transitions(end)
    np.testing.assert_allclose(dense(counts.successors), expected, rtol=1e-5)
    np.testing.assert_allclose(
      counts.successors.totals, expected.sum(1), rtol=1e-5
    )
  assert end == NUM_EVENTS and np.count_nonzero(expected) > 100


def test_of_more_successors_some_are_kept_and_the_total_is_exact():
  *_, (end, counts) = counted(8)
  expected, kept = transitions(end), dense(counts.successors)
  full = (expected > 0).sum(1) > 8
  assert full.sum() > 3
  assert np.all((kept > 0).sum(1)[full] == 8)
  assert np.all(kept <= expected + 1e-5)  # none that did not happen
  np.testing.assert_allclose(kept[~full], expected[~full], rtol=1e-5)
  np.testing.assert_allclose(
    counts.successors.totals, expected.sum(1), rtol=1e-5
  )


def test_recency_is_the_sum_of_decayed_events():
  share = jax.jit(recency.shares)
  items = jnp.arange(NUM_ITEMS + 1)
  for end, counts in counted(8):
    now = int(LOG.times[end - 1]) + 5 * logs.DAY
    days = (now - LOG.times[:end, None]) / logs.DAY
    values = np.zeros([NUM_ITEMS + 1, len(recency.HALF_LIVES)])
    np.add.at(values, LOG.items[:end], 0.5 ** (days / recency.HALF_LIVES))
    np.testing.assert_allclose(
      share(counts.recency, items, jnp.int32(now)),
      values / values.max(0),
      rtol=1e-3,
      atol=1e-6,
    )
    first = dict(zip(LOG.items[:end][::-1], LOG.times[:end][::-1]))
    np.testing.assert_allclose(
      recency.age_days(counts.recency, items, jnp.int32(now)),
      [(now - first[i]) / logs.DAY if i in first else -1 for i in range(41)],
      rtol=1e-6,
    )


def test_a_catalogue_has_a_table_up_to_a_size():
  shapes = lambda *given: jax.eval_shape(lambda: successors.empty(*given))
  largest = successors._LARGEST_TABLE
  assert shapes(largest, 0).items is None
  assert shapes(largest, 0).counts.shape == (largest + 1, largest + 1)
  assert shapes(largest + 1, 0).items.shape == (largest + 2, 64)
  assert shapes(largest, 64).items.shape == (largest + 1, 64)


@pytest.mark.parametrize('num_kept', [8, 0])
def test_a_grown_catalogue_keeps_its_counts_as_they_were(monkeypatch, num_kept):
  monkeypatch.setattr(successors, '_LARGEST_TABLE', NUM_ITEMS)
  *_, (_, counts) = counted(num_kept)
  grown = successors.grown(counts.successors, NUM_ITEMS + 3)
  size = NUM_ITEMS + 1
  assert (grown.items is None) == (num_kept == 0)
  jax.tree.map(
    lambda new, old: np.testing.assert_array_equal(
      new[tuple(slice(0, length) for length in old.shape)], old
    ),
    grown,
    counts.successors,
  )
  assert not any(np.any(leaf[size:]) for leaf in jax.tree.leaves(grown))
  assert grown.counts.shape == (size + 3, 8 if num_kept else size + 3)


@pytest.mark.parametrize('num_kept', [8, 0])
def test_reset_is_as_before_the_first_event(num_kept):
  *_, (_, counts) = counted(num_kept)
  jax.tree.map(
    np.testing.assert_array_equal,
    online_counts.reset(counts),
    online_counts.empty(NUM_ITEMS, num_kept),
  )
