"""Distillation against a sort of plain Python (SPEC 3.7)."""

import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers import distillation

DIM, TOP = 6, 3

VALUES = st.floats(-3, 3, width=32).map(lambda x: round(x, 2))
VECTOR = st.lists(VALUES, min_size=DIM, max_size=DIM)
QUERY = VECTOR.filter(lambda q: sum(x * x for x in q) > 1e-2)

_distill = jax.jit(distillation.distill, static_argnums=(2, 3))


def oracle(facet, query, top_r, order):
  """A distilled facet by SPEC 3.7, coordinate by coordinate."""
  if order == 'none':
    return list(facet)
  norm = np.sqrt(np.float32(sum(np.float32(q) ** 2 for q in query)))
  scores = [float(h * q / norm) for h, q in zip(facet, query)]
  gated = [float(h) * math.tanh(s) for h, s in zip(facet, scores)]
  # Ties go to the lower coordinate, as lax.top_k has it.
  best = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:top_r]
  if order == 'mask':
    return [gated[k] if k in best else 0.0 for k in range(len(scores))]
  if order == 'index':
    best = sorted(best)
  return [gated[k] for k in best]


def test_the_sigmoid_keeps_the_sign_that_tanh_loses():
  facet = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5], np.float32)
  query = np.ones(6, np.float32)
  tanh, sigmoid = (
    distillation.distill(facet, query, 6, 'mask', gate)
    for gate in distillation.GATES
  )
  np.testing.assert_allclose(tanh[::2], tanh[1::2], atol=1e-6)
  scores = facet / np.sqrt(6)
  np.testing.assert_allclose(sigmoid, facet / (1 + np.exp(-scores)), atol=1e-6)


def distinct(facet, query):
  """Whether float32 can tell the scores apart, in any order of rounding."""
  scores = sorted(h * q for h, q in zip(facet, query))
  return all(b - a > 1e-4 for a, b in zip(scores, scores[1:]))


@pytest.mark.parametrize('order', distillation.ORDERS)
@given(facet=VECTOR, query=QUERY)
@settings(max_examples=40)
def test_distill(order, facet, query):
  facet, query = np.array(facet, np.float32), np.array(query, np.float32)
  found = _distill(facet, query, TOP, order)
  width = DIM if order in ('mask', 'none') else TOP
  assert found.shape == (width,)
  if distinct(facet, query) or order == 'none':
    np.testing.assert_allclose(
      found, oracle(facet, query, TOP, order), atol=1e-5
    )


def test_distill_by_hand():
  facet, query = jnp.array([1.0, 2.0, -2.0, 3.0]), jnp.array([3.0, 0, -4.0, 0])
  # |q| = 5, scores .6, 0, 1.6, 0: coordinates 2, 0 and, of the tie, 1.
  gate = [math.tanh(0.6), 0.0, -2 * math.tanh(1.6), 0.0]
  for order, expected in (
    ('score', [gate[2], gate[0], gate[1]]),
    ('index', [gate[0], gate[1], gate[2]]),
    ('mask', gate),
    ('none', facet),
  ):
    np.testing.assert_allclose(
      _distill(facet, query, 3, order), expected, atol=1e-6
    )


def test_slots_are_in_the_order_of_top_k():
  rng = np.random.default_rng(0)
  facet = rng.integers(-2, 3, (50, DIM)).astype(np.float32)  # many ties
  query = np.ones(DIM, np.float32)
  scores = facet * query / np.sqrt(np.float32(DIM))
  _, index = jax.lax.top_k(scores, TOP)
  gated = facet * np.tanh(scores)
  np.testing.assert_allclose(
    _distill(facet, query, TOP, 'score'),
    np.take_along_axis(gated, np.asarray(index), 1),
    atol=1e-6,
  )


@pytest.mark.parametrize('order', distillation.ORDERS)
def test_facets_are_distilled_one_by_one(order):
  rng = np.random.default_rng(1)
  facet = rng.normal(size=(3, 4, DIM)).astype(np.float32)
  query = rng.normal(size=(4, DIM)).astype(np.float32)
  found = _distill(facet, query, TOP, order)
  for row, column in np.ndindex(3, 4):
    np.testing.assert_allclose(
      found[row, column],
      oracle(facet[row, column], query[column], TOP, order),
      atol=1e-5,
    )


@pytest.mark.parametrize('order', ['score', 'index', 'mask'])
def test_gradients_reach_the_kept_coordinates_alone(order):
  rng = np.random.default_rng(2)
  facet, query = rng.normal(size=(2, DIM)).astype(np.float32)
  grad = jax.grad(lambda facet: jnp.sum(_distill(facet, query, TOP, order)))(
    facet
  )
  kept = np.argsort(-facet * query)[:TOP]
  norm = np.linalg.norm(query)
  s = facet * query / norm
  expected = np.tanh(s) + facet * (1 - np.tanh(s) ** 2) * query / norm
  dropped = np.setdiff1d(np.arange(DIM), kept)
  np.testing.assert_allclose(grad[kept], expected[kept], atol=1e-5)
  assert not np.any(grad[dropped])
  # The query is learned through its direction: along itself it moves nothing.
  grad = jax.grad(lambda query: jnp.sum(_distill(facet, query, TOP, order)))(
    query
  )
  assert np.any(np.abs(grad) > 1e-3)
  assert abs(float(grad @ query)) < 1e-5


def test_keeping_every_coordinate_loses_none():
  rng = np.random.default_rng(3)
  facet, query = rng.normal(size=(2, DIM)).astype(np.float32)
  whole = _distill(facet, query, DIM, 'mask')
  np.testing.assert_array_equal(_distill(facet, query, DIM, 'index'), whole)
  np.testing.assert_array_equal(
    np.sort(_distill(facet, query, DIM, 'score')), np.sort(whole)
  )


def test_a_wide_facet_is_sorted():
  facet = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
  found = _distill(facet, np.ones(300, np.float32), 9, 'score')
  scores = facet / np.sqrt(np.float32(300))
  gated = np.take_along_axis(
    facet * np.tanh(scores), np.argsort(-scores, -1)[:, :9], -1
  )
  np.testing.assert_allclose(found, gated, atol=1e-5)
