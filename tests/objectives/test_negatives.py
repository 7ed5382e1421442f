"""Negatives: which are allowed, and how they are drawn (SPEC 3.9)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.objectives import negatives
from tests.testing import logs


def taken_by_event(log):
  """For each event, the items its user takes at that very time."""
  return [
    {
      int(i)
      for u, i, t in zip(log.users, log.items, log.times)
      if (u, t) == (user, time)
    }
    for user, time in zip(log.users, log.times)
  ]


_negatives = jax.jit(negatives.sample_negatives, static_argnums=(3, 4))


@pytest.mark.parametrize('how', negatives.NEGATIVES)
def test_own_negatives_are_never_taken_then(how):
  log = logs.random_log(1, num_users=3, num_items=9, num_times=4)
  inputs = logs.random_inputs(log, sold=True)
  events = jnp.arange(log.num_events)
  taken = taken_by_event(log)
  assert max(map(len, taken)) >= 6  # few items are left to these
  refused = 0
  for seed in range(5):
    items, allowed = map(
      np.asarray,
      _negatives(
        jax.random.key(seed), inputs, events, (log.num_events, 5), how
      ),
    )
    assert items.shape == allowed.shape == (log.num_events, 5)
    for event in range(log.num_events):
      for item, fine in zip(items[event].tolist(), allowed[event].tolist()):
        assert 1 <= item <= log.num_items
        assert fine == (item not in taken[event])
    refused += int(np.sum(~allowed))
  # A single try would be refused as often as its item is taken.
  assert refused < sum(5 * 5 * (len(t) / log.num_items) ** 2 for t in taken)


# As many as the longest group may have items and more, and fewer: two ways.
@pytest.mark.parametrize('number', [100, 4])
@pytest.mark.parametrize('how', negatives.NEGATIVES)
def test_shared_negatives_are_masked_where_taken(how, number):
  log = logs.random_log(2, num_users=3, num_items=25, num_times=4)
  inputs = logs.random_inputs(log, sold=True)
  taken = taken_by_event(log)
  items, allowed = _negatives(
    jax.random.key(0), inputs, jnp.arange(log.num_events), (number,), how
  )
  assert items.shape == (number,)
  assert 4 < inputs.same_time.longest <= 100
  assert np.asarray(allowed).tolist() == [
    [item not in own for item in items.tolist()] for own in taken
  ]


def test_a_user_who_takes_everything_has_no_negative():
  log = logs.make_log([1, 1, 1, 1], [1, 2, 3, 1], [0, 0, 0, 7])
  items, allowed = _negatives(
    jax.random.key(0),
    logs.random_inputs(log),
    jnp.arange(4),
    (4, 16),
    'uniform',
  )
  assert not np.any(allowed[:3])
  assert np.all(allowed[3]) and 1 not in items[3].tolist()


def assert_drawn_like(items, weights):
  """Chi-square of draws against weights, five standard deviations allowed."""
  counts = np.bincount(np.ravel(items), minlength=len(weights))
  expected = counts.sum() * np.asarray(weights) / np.sum(weights)
  assert not counts[expected == 0].any()
  kept = expected > 0
  square = np.sum((counts - expected)[kept] ** 2 / expected[kept])
  freedom = kept.sum() - 1
  assert square < freedom + 5 * (2 * freedom) ** 0.5


def popular_log():
  """Item k has k training events; item 5 is new after training."""
  items = [1] + [2] * 2 + [3] * 3 + [4] * 8 + [5] * 6
  log = logs.make_log([1] * 20, items, list(range(20)), num_items=6)
  assert log.train_end == 14
  return log


@pytest.mark.parametrize('shape', [(20, 400), (8000,)])
def test_uniform_is_uniform_over_the_catalogue(shape):
  log = popular_log()
  inputs = logs.random_inputs(log)
  items, allowed = map(
    np.asarray,
    _negatives(jax.random.key(3), inputs, jnp.arange(20), shape, 'uniform'),
  )
  if len(shape) == 1:
    assert_drawn_like(items, [0, 1, 1, 1, 1, 1, 1])
  else:
    for item, rows in ((4, slice(6, 14)), (5, slice(14, 20))):
      assert_drawn_like(
        items[rows][allowed[rows]],
        [0] + [float(k != item) for k in range(1, 7)],
      )


@pytest.mark.parametrize('shape', [(14, 400), (8000,)])
def test_sold_is_uniform_over_what_has_been_sold(shape):
  inputs = logs.random_inputs(popular_log(), sold=True)
  items, allowed = map(
    np.asarray,
    _negatives(jax.random.key(3), inputs, jnp.arange(14), shape, 'sold'),
  )
  # Event 13 is the last one of item 4; item 5 is sold later, item 6 never.
  if len(shape) == 1:
    assert_drawn_like(items, [0, 1, 1, 1, 1, 0, 0])
    return
  assert not allowed[0].any()  # nothing but its own item has been sold
  assert_drawn_like(items[3:6][allowed[3:6]], [0, 1, 1, 0, 0, 0, 0])
  assert_drawn_like(items[6:14][allowed[6:14]], [0, 1, 1, 1, 0, 0, 0])


def test_what_is_sold_later_is_not_known_earlier():
  log = popular_log()
  later = np.arange(log.num_events) >= 12
  other = logs.make_log(
    log.users, np.where(later, 6, log.items), log.times, num_items=6
  )
  found, changed = (
    np.asarray(logs.random_inputs(x, sold=True).sold) for x in (log, other)
  )
  np.testing.assert_array_equal(found[:12], changed[:12])
  assert found[12] == 4 and changed[12] == 6


@pytest.mark.parametrize('shape', [(20, 400), (8000,)])
def test_popularity_is_proportional_to_training_events(shape):
  inputs = logs.random_inputs(popular_log())
  items, _ = _negatives(
    jax.random.key(4), inputs, jnp.arange(20), shape, 'popularity'
  )
  # Events 14 to 19 take item 5, so that no draw of theirs is refused.
  drawn = items if len(shape) == 1 else items[14:]
  assert_drawn_like(drawn, [0, 1, 2, 3, 8, 0, 0])


def test_negatives_follow_the_key():
  log = logs.random_log(1, num_users=3, num_items=9, num_times=4)
  inputs = logs.random_inputs(log)
  draw = lambda seed: np.asarray(
    _negatives(
      jax.random.key(seed), inputs, jnp.arange(60), (60, 5), 'uniform'
    )[0]
  )
  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0) != draw(1)).any()
