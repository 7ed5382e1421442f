"""Count terms against a slow reading of SPEC 3.12."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import columns
from dynllm_jax.graph import history
from dynllm_jax.graph import online_counts
from dynllm_jax.graph import recency
from dynllm_jax.layers import count_terms
from dynllm_jax.layers import past_term
from dynllm_jax.objectives import scoring
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import UserEmbeddings
from tests.testing import logs

NUM_USERS, NUM_ITEMS, DEPTH = 5, 12, 3
LOG = logs.random_log(2, NUM_USERS, NUM_ITEMS, num_events=90, num_times=40)
CUT = int(np.searchsorted(LOG.times, LOG.times[70]))
USERS = np.array([1, 2, 3, 4, 5, 2, 0, 5], np.int32)
# At, before and after the cut's time: the graph has the future, too.
TIMES = LOG.times[[CUT, CUT, CUT + 5, CUT, 89, 20, CUT, 0]].astype(np.int32)
ITEMS = np.array([7, 3, 3, 12, 1, 9, 7, 2, 0], np.int32)  # some twice
NOW = np.int32(LOG.times[CUT])


def counts_before_the_cut(inputs, num_kept=16):
  rows = lambda x: jnp.asarray(x[:CUT].astype(np.int32))
  events = EventBatch(
    rows(LOG.users), rows(LOG.items), rows(LOG.times), jnp.ones([CUT], bool)
  )
  empty = online_counts.empty(NUM_ITEMS, num_kept)
  return online_counts.add(empty, inputs.user_graph, events, DEPTH)


def past_of(user, time):
  """(item, seconds) strictly before a time, the latest first."""
  events = zip(LOG.users, LOG.items, LOG.times)
  return [(i, t) for u, i, t in events if u == user and t < time][::-1]


def weights_of(params, user, time):
  """f64[features], from the user's state."""
  past = past_of(user, time)
  month = sum(t >= time - 30 * logs.DAY for _, t in past)
  recent = [i for i, _ in past[:20]]
  again = sum(i in recent[k + 1 :] for k, i in enumerate(recent))
  state = np.array(
    [
      bool(past),
      np.log1p((time - past[0][1]) / logs.DAY) if past else 0,
      np.log1p(month),
      np.log1p(len(past)),
      again / max(1, len(recent)),
    ]
  )
  gate = np.asarray(params['gate']['kernel'], float)
  return 10 * (np.asarray(params['weights'], float) + state @ gate)


def expected_term(params, table, user, time, item):
  """The terms of one candidate, in float64."""
  weights, past = weights_of(params, user, time), past_of(user, time)
  own = [t for i, t in past if i == item]
  past_weights, weights = np.split(weights, [past_term.NUM_FEATURES])
  total = 0.0
  if own:
    days = np.log1p((time - own[0]) / logs.DAY)
    bends = [max(0, days - np.log1p(x)) for x in (1, 7, 30, 180)]
    total += past_weights @ [1, np.log(len(own)), days, *bends]
  share = sum(
    table[x, item] / ((k + 1) * (table[x].sum() + 5))
    for k, (x, _) in enumerate(past[:DEPTH])
  )
  total += weights[0] * np.log(1e-4 + share)

  ages = lambda i: [
    (NOW - t) / logs.DAY for j, t in zip(LOG.items[:CUT], LOG.times) if j == i
  ]
  for n, half_life in enumerate(recency.HALF_LIVES):
    values = [
      sum(0.5 ** (days / half_life) for days in ages(i))
      for i in range(1, NUM_ITEMS + 1)
    ]
    share = values[item - 1] / max(values)
    total += weights[1 + n] * np.log(1e-3 + share)
  if ages(item):
    total += weights[5] * np.log1p(max(ages(item))) + weights[6]
  return total


def transitions():
  table = np.zeros([NUM_ITEMS + 1, NUM_ITEMS + 1])
  for u, i, t in zip(LOG.users[:CUT], LOG.items, LOG.times):
    for k, (x, _) in enumerate(past_of(u, t)[:DEPTH]):
      table[x, i] += 1 / (k + 1)
  return table


# Blocks of histories that hold all takes, and that do not, one of them not
# full: then terms are computed for all users and candidates.
@pytest.mark.parametrize('block, num_kept', [(8192, 16), (8, 16), (8192, 0)])
def test_terms_are_those_of_strictly_earlier_events(
  monkeypatch, block, num_kept
):
  monkeypatch.setattr(history, '_BLOCK', block)
  inputs = logs.random_inputs(LOG)
  counts = counts_before_the_cut(inputs, num_kept)
  network = count_terms.CountTerms(DEPTH)
  args = counts, inputs, *map(jnp.asarray, (USERS, TIMES, ITEMS, NOW))
  params = logs.random_params(network.init, *args)['params']
  terms, column = jax.jit(network.apply)({'params': params}, *args)

  users = UserEmbeddings(jnp.zeros([len(USERS), 1]), counts=terms)
  items = ItemEmbeddings(ITEMS, jnp.zeros([len(ITEMS), 1]), column=column)
  scores = scoring.score(users, items, NUM_ITEMS)
  table = transitions()
  real = ITEMS > 0
  np.testing.assert_allclose(
    scores[:, real],
    [
      [expected_term(params, table, u, t, i) for i in ITEMS[real]]
      for u, t in zip(USERS, TIMES)
    ],
    rtol=2e-4,
    atol=2e-3,
  )
  assert np.isfinite(scores).all()
  np.testing.assert_array_equal(scores[:, 0], scores[:, 6])  # the same item
  rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), items)
  np.testing.assert_array_equal(scoring.score_rows(users, rows), scores)


def test_takes_one_by_one_give_what_all_candidates_give(monkeypatch):
  """Values and gradients; with room for all, in one block or more, or not."""
  inputs = logs.random_inputs(LOG)
  rng = np.random.default_rng(0)
  draw = lambda width: jnp.asarray(rng.normal(size=(len(USERS), width)), 'f4')
  terms, weights = draw(NUM_ITEMS), draw(past_term.NUM_FEATURES)

  def value_and_slopes(terms, weights):
    table, _ = columns.of_candidates(jnp.arange(1, NUM_ITEMS + 1), NUM_ITEMS)
    users, times = jnp.asarray(USERS), jnp.asarray(TIMES)
    takes = history.takes_before(inputs.user_graph, users, times, table)
    add = lambda terms, weights: jnp.sum(
      jnp.sin(past_term.add(terms, weights, takes, times))
    )
    slopes = jax.value_and_grad(add, argnums=(0, 1))(terms, weights)
    return slopes, takes.listed.has_all, takes.listed.total

  def found(block, users_a_block):
    monkeypatch.setattr(history, '_BLOCK', block)
    monkeypatch.setattr(history, '_USERS_A_BLOCK', users_a_block)
    # A new function each time, or the first program would serve again.
    return jax.jit(lambda *args: value_and_slopes(*args))(terms, weights)

  expected, has_all, total = found(8, 64)
  assert not has_all and total > 16  # all users and candidates
  assert np.all(np.any(expected[1][1], axis=0)[:5])  # few are months old
  for block, users_a_block in ((8192, 64), (16, 1)):
    slopes, has_all, _ = found(block, users_a_block)
    assert has_all
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
      slopes,
      expected,
    )


def test_histories_of_any_length_are_read_whole():
  inputs = logs.random_inputs(LOG)
  items = jnp.arange(1, NUM_ITEMS + 1)
  table, _ = columns.of_candidates(items, NUM_ITEMS)
  takes = history.takes_before(
    inputs.user_graph, jnp.asarray(USERS), jnp.asarray(TIMES), table
  )
  for row, (user, time) in enumerate(zip(USERS, TIMES)):
    for item in range(1, NUM_ITEMS + 1):
      own = [t for i, t in past_of(user, time) if i == item]
      assert takes.number[row, item - 1] == len(own)
      assert takes.last[row, item - 1] == (own[0] if own else -1)
