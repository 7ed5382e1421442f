"""Scores against a loop over users, items and terms (SPEC 3.9, 3.11)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.objectives import scoring
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Terms
from dynllm_jax.types import UserEmbeddings

BATCH, DIM, NUM_ITEMS, TERMS = 3, 4, 6, 9
TEXTS = (
  np.random.default_rng(9).normal(size=(NUM_ITEMS + 1, 5)).astype(np.float32)
)
PARTS = ('scale', 'text', 'copy', 'walk', 'item_scores')
# Any order, some ids twice, item 2 missing, padding too.
IDS = np.array([5, 1, 4, 4, 0, 6, 1, 3], np.int32)

_score = jax.jit(functools.partial(scoring.score, num_items=NUM_ITEMS))
_score_rows = jax.jit(scoring.score_rows)


def draw_users(seed, parts):
  """Users by chance whose embeddings have these parts beside the vector."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)

  def terms(positive):
    items = rng.integers(0, NUM_ITEMS + 1, (BATCH, TERMS))
    weights = rng.uniform(0.0 if positive else -2.0, 2.0, items.shape)
    weights[items == 0] = 0.0  # padding
    return Terms(
      jnp.asarray(items, jnp.int32), jnp.asarray(weights, jnp.float32)
    )

  return UserEmbeddings(
    vector=normal(BATCH, DIM),
    scale=jnp.float32(0.3) if 'scale' in parts else None,
    text=normal(BATCH, TEXTS.shape[1]) if 'text' in parts else None,
    copy=terms(False) if 'copy' in parts else None,
    walk=terms(True) if 'walk' in parts else None,
    walk_scale=jnp.float32(1.7) if 'walk' in parts else None,
    item_scores=normal(BATCH, NUM_ITEMS + 1)
    if 'item_scores' in parts
    else None,
  )


def brute(users, row, item, vector):
  """The score of one item for one row of users, part by part."""
  total = sum(float(a) * float(b) for a, b in zip(users.vector[row], vector))
  if users.scale is not None:
    total *= float(users.scale)
  if users.text is not None:
    total += sum(
      float(a) * float(b) for a, b in zip(users.text[row], TEXTS[item])
    )

  def on_item(terms):
    return sum(
      float(w)
      for i, w in zip(terms.items[row], terms.weights[row])
      if i == item
    )

  if users.copy is not None:
    total += on_item(users.copy)
  if users.walk is not None:
    total += float(users.walk_scale) * math.log(1 + on_item(users.walk))
  if users.item_scores is not None:
    total += float(users.item_scores[row, item])
  return total


@pytest.mark.parametrize('parts', [(), *((p,) for p in PARTS), PARTS])
def test_score_is_a_loop(parts):
  users = jax.tree.map(np.asarray, draw_users(0, parts))
  vectors = (
    np.random.default_rng(1).normal(size=(len(IDS), DIM)).astype(np.float32)
  )
  expected = [
    [brute(users, row, item, vector) for item, vector in zip(IDS, vectors)]
    for row in range(BATCH)
  ]
  np.testing.assert_allclose(
    _score(users, ItemEmbeddings(IDS, vectors, TEXTS[IDS])), expected, atol=1e-5
  )


@pytest.mark.parametrize('parts', [(), *((p,) for p in PARTS), PARTS])
def test_score_rows_is_a_loop(parts):
  users = jax.tree.map(np.asarray, draw_users(2, parts))
  rng = np.random.default_rng(3)
  ids = rng.integers(0, NUM_ITEMS + 1, (BATCH, 5)).astype(np.int32)
  ids[0] = [4, 4, 1, 0, 4]
  vectors = rng.normal(size=(BATCH, 5, DIM)).astype(np.float32)
  expected = [
    [brute(users, row, ids[row, k], vectors[row, k]) for k in range(5)]
    for row in range(BATCH)
  ]
  np.testing.assert_allclose(
    _score_rows(users, ItemEmbeddings(ids, vectors, TEXTS[ids])),
    expected,
    atol=1e-5,
  )


def test_the_terms_of_a_score_are_told_apart():
  """Each is what the score is without the others."""
  users = draw_users(6, PARTS)
  vectors = jnp.asarray(
    np.random.default_rng(7).normal(size=(len(IDS), DIM)), jnp.float32
  )
  items = ItemEmbeddings(jnp.asarray(IDS), vectors, jnp.asarray(TEXTS)[IDS])
  terms = jax.jit(scoring.score_terms, static_argnums=2)(
    users, items, NUM_ITEMS
  )
  assert set(terms) == {'network', 'text', 'copy', 'walk', 'item_scores'}
  nothing = dict.fromkeys(('text', 'copy', 'walk', 'item_scores'))
  for name, values in terms.items():
    if name == 'network':
      alone = users.replace(**nothing)
    else:
      alone = users.replace(
        **nothing | {name: getattr(users, name)},
        vector=jnp.zeros_like(users.vector),
      )
    np.testing.assert_allclose(values, _score(alone, items), atol=1e-6)


def test_a_score_does_not_depend_on_the_other_candidates():
  users = draw_users(4, PARTS)
  vectors = jnp.asarray(
    np.random.default_rng(5).normal(size=(NUM_ITEMS + 1, DIM)), jnp.float32
  )

  def scores(ids):
    ids = jnp.array(ids)
    return np.asarray(
      _score(users, ItemEmbeddings(ids, vectors[ids], jnp.asarray(TEXTS)[ids]))
    )

  every = scores(range(NUM_ITEMS + 1))
  for ids in ([3], [6, 2], [5, 5, 1, 5], [0, 6], [1, 2, 3]):
    np.testing.assert_allclose(scores(ids), every[:, ids], atol=1e-6)


def test_of_a_catalogue_in_order_no_column_is_looked_for():
  users = draw_users(8, PARTS)
  for count in (NUM_ITEMS, NUM_ITEMS - 2):
    ids = jnp.arange(1, count + 1)
    items = ItemEmbeddings(
      ids, jnp.ones([count, DIM]), jnp.asarray(TEXTS)[1 : count + 1]
    )
    found, wanted = (
      scoring.score_terms(users, items, num_items)
      for num_items in (None, NUM_ITEMS)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert np.any(found['copy']) and np.any(found['walk'])


def test_terms_past_every_candidate_fall_off():
  users = UserEmbeddings(
    vector=jnp.zeros([1, 1]),
    copy=Terms(jnp.array([[1, 5, 9]]), jnp.array([[10.0, 20.0, 40.0]])),
  )
  items = ItemEmbeddings(jnp.array([5, 3, 7]), jnp.zeros([3, 1]))
  assert scoring.score(users, items, 9).tolist() == [[20.0, 0.0, 0.0]]


@pytest.mark.parametrize('run', ['score', 'score_rows'])
def test_gradients_are_those_of_the_sum_of_terms(run):
  users = draw_users(6, PARTS)
  rng = np.random.default_rng(7)
  vectors = rng.normal(size=(len(IDS), DIM)).astype(np.float32)
  weights = jnp.asarray(rng.normal(size=(BATCH, len(IDS))), jnp.float32)
  ids = jnp.asarray(IDS)

  def dense(learned):
    """The formula on one-hot items."""
    drawn, vectors, texts = learned

    def spread(terms):
      hot = (terms.items[:, :, None] == ids).astype(jnp.float32)
      return jnp.einsum('bt,btc->bc', terms.weights, hot)

    return jnp.sum(
      weights
      * (
        drawn.scale * drawn.vector @ vectors.T
        + drawn.text @ texts.T
        + spread(drawn.copy)
        + drawn.walk_scale * jnp.log1p(spread(drawn.walk))
        + drawn.item_scores[:, ids]
      )
    )

  def ours(learned):
    drawn, vectors, texts = learned
    if run == 'score':
      return jnp.sum(
        weights * _score(drawn, ItemEmbeddings(ids, vectors, texts))
      )
    rows = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (BATCH, *x.shape)),
      ItemEmbeddings(ids, vectors, texts),
    )
    return jnp.sum(weights * scoring.score_rows(drawn, rows))

  learned = users, jnp.asarray(vectors), jnp.asarray(TEXTS[IDS])
  found, expected = (
    [
      leaf
      for leaf in jax.tree.leaves(jax.jit(jax.grad(f, allow_int=True))(learned))
      if leaf.dtype == jnp.float32
    ]
    for f in (ours, dense)
  )
  assert len(found) == len(expected) == 9
  for one, two in zip(found, expected):
    assert np.all(np.isfinite(one)) and np.any(one)
    np.testing.assert_allclose(one, two, atol=1e-5)
