"""Facet tokens and static halves of items against SPEC 3.6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers.distillation import distill
from dynllm_jax.layers.facet_tokens import FacetTokens
from dynllm_jax.layers.item_static import ItemStatic
from tests.testing import logs

DIM, LLM, BATCH, FACETS, TOP = 6, 5, 3, 4, 2
RNG = np.random.default_rng(0)
TEXTS = RNG.normal(size=(BATCH, FACETS, LLM)).astype(np.float16)
KNOWN = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)


def layer_norm(x):
  centered = x - x.mean(-1, keepdims=True)
  return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)


def build(order='none', **kwargs):
  module = FacetTokens(DIM, TOP, order, **kwargs)
  return module, logs.random_params(module.init, TEXTS, KNOWN, True)


def facets_of(params):
  """f64[batch, facets, dim] as SPEC 3.6 has them, one text at a time."""
  p = {name: np.asarray(w, float) for name, w in params['params'].items()}
  rows = np.zeros((BATCH, FACETS, DIM))
  for row, facet in np.ndindex(BATCH, FACETS):
    projected = TEXTS[row, facet].astype(float) @ p['projection'][facet]
    rows[row, facet] = (
      layer_norm(projected) * p['scale'][facet] + p['bias'][facet]
      if KNOWN[row, facet]
      else p['unknown'][facet]
    )
  return rows


def test_a_facet_is_projected_and_normalized_or_unknown():
  module, params = build()
  np.testing.assert_allclose(
    module.apply(params, TEXTS, KNOWN, True), facets_of(params), atol=1e-5
  )


@pytest.mark.parametrize('order', ['score', 'index', 'mask'])
def test_a_token_is_a_distilled_facet(order):
  module, params = build(order)
  found = module.apply(params, TEXTS, KNOWN, True)
  assert found.shape == (BATCH, FACETS, DIM if order == 'mask' else TOP)
  np.testing.assert_allclose(
    found,
    distill(
      jnp.float32(facets_of(params)), params['params']['query'], TOP, order
    ),
    atol=1e-5,
  )


def test_the_text_of_an_unknown_facet_does_not_matter():
  module, params = build('score')
  other = np.where(KNOWN[..., None], TEXTS, np.float16(9.0))
  total = lambda params, texts: jnp.sum(
    module.apply(params, texts, KNOWN, True) ** 2
  )
  run = jax.jit(jax.value_and_grad(total))
  value, grads = run(params, TEXTS)
  jax.tree.map(
    np.testing.assert_array_equal, (value, grads), run(params, other)
  )
  assert np.any(grads['params']['unknown'][0])


def test_every_facet_has_weights_of_its_own():
  module, _ = build('score')
  params = module.init(jax.random.key(0), TEXTS, KNOWN, True)['params']
  for name, weights in params.items():
    assert weights.shape[0] == FACETS, name
  query = params['query']
  assert len({tuple(row) for row in query.tolist()}) == FACETS
  assert np.all(np.linalg.norm(query, axis=1) > 0.1)  # q is never zero


def test_facet_dropout_touches_known_facets_alone():
  module, params = build(dropout=0.5)
  found = module.apply(
    params, TEXTS, KNOWN, False, rngs={'dropout': jax.random.key(0)}
  )
  same = np.all(np.isclose(found, facets_of(params), atol=1e-5), axis=-1)
  np.testing.assert_array_equal(same[~KNOWN], True)
  assert not same[KNOWN].all()


# ---------------------------------------------------------------- item static

TABLE = RNG.normal(size=(7, LLM)).astype(np.float16)
ITEMS = np.array([[3, 1], [6, 3]], np.int32)


@pytest.mark.parametrize('use_text', [False, True])
@pytest.mark.parametrize('use_id', [False, True])
def test_static_half_is_text_plus_id(use_text, use_id):
  module = ItemStatic(DIM, use_text, use_id)
  params = logs.random_params(module.init, TABLE, ITEMS, True)
  found = module.apply(params, TABLE, ITEMS, True)
  expected = np.zeros((2, 2, DIM))
  if use_text:
    dense = params['params']['Dense_0']
    norm = params['params']['LayerNorm_0']
    expected += norm['bias'] + norm['scale'] * layer_norm(
      TABLE[ITEMS].astype(float) @ np.asarray(dense['kernel'], float)
      + np.asarray(dense['bias'], float)
    )
  if use_id:
    expected += np.asarray(params['params']['Embed_0']['embedding'])[ITEMS]
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert len(params.get('params', {})) == 2 * use_text + use_id
