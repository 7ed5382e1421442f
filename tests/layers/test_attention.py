"""Single-query attention against plain multi-head attention."""

import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels.few_query_attention import masked_softmax
from dynllm_jax.layers.attention import SingleQueryAttention
from tests.testing import logs

DIM, HEADS, QUERY, PARTS, KEYS, BATCH = 6, 2, (3, 2), (4, 3), 4, 3


@pytest.fixture(name='drawn', scope='module')
def fixture_drawn():
  """A module, random parameters and inputs, and a mask with an empty row."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  query = [normal(BATCH, QUERY[0]), normal(QUERY[1])]  # the second a constant
  keys = [normal(BATCH, KEYS, part) for part in PARTS]
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
  module = SingleQueryAttention(DIM, HEADS)
  params = logs.random_params(module.init, query, keys, mask, True)
  return module, params, query, keys, mask


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, query, keys, mask):
  return module.apply(params, query, keys, mask, True).product()


def plain(params, query, keys, mask):
  """Every key and value projected, head by head and row by row."""
  p = {name: np.asarray(w, float) for name, w in params['params'].items()}
  joined = np.concatenate([np.asarray(part, float) for part in keys], -1)
  out = np.zeros((BATCH, DIM))
  for row, own in enumerate(np.asarray(query[0], float)):
    q = np.concatenate([own, np.asarray(query[1], float)])
    kept = joined[row][np.asarray(mask[row])]
    heads = []
    for head in range(HEADS):
      values = kept @ p['value'][:, head]
      logits = kept @ p['key'][:, head] @ (q @ p['query'][:, head])
      exp = np.exp(logits / np.sqrt(DIM // HEADS))
      heads.append(exp / exp.sum() @ values if len(kept) else np.zeros(3))
    out[row] = np.concatenate(heads) @ p['out']
  return out


def test_attention_is_plain_multi_head_attention(drawn):
  module, params, query, keys, mask = drawn
  found = apply(module, params, query, keys, mask)
  np.testing.assert_allclose(found, plain(params, query, keys, mask), atol=1e-5)


def test_parts_of_keys_are_their_concatenation(drawn):
  module, params, query, keys, mask = drawn
  np.testing.assert_allclose(
    apply(module, params, query, keys, mask),
    apply(module, params, query, [jnp.concatenate(keys, -1)], mask),
    atol=1e-6,
  )


def test_without_a_key_the_output_is_zero(drawn):
  module, params, query, keys, mask = drawn
  assert not np.any(apply(module, params, query, keys, mask)[2])


def test_gradients_are_finite_where_all_is_masked(drawn):
  module, params, query, keys, some = drawn

  def loss(params, query, keys, mask):
    return jnp.sum(apply(module, params, query, keys, mask) ** 2)

  for mask in (some, jnp.zeros_like(some)):
    grads = jax.grad(loss, (0, 1, 2))(params, query, keys, mask)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_masked_keys_do_not_matter(drawn):
  module, params, query, keys, mask = drawn
  run = jax.value_and_grad(
    lambda params, query, keys: jnp.sum(
      jnp.cos(apply(module, params, query, keys, mask))
    ),
    (0, 1, 2),
  )
  other = [jnp.where(mask[..., None], part, 1e4) for part in keys]
  one, two = run(params, query, keys), run(params, query, other)
  jax.tree.map(np.testing.assert_array_equal, one, two)
  for part in one[1][2]:
    assert not np.any(np.asarray(part)[~np.asarray(mask)])
    assert np.any(part)


def test_dropout_follows_its_key_and_is_off_when_deterministic(drawn):
  _, params, query, keys, mask = drawn
  module = SingleQueryAttention(DIM, HEADS, 0.5)
  run = lambda seed: np.asarray(
    module.apply(
      params, query, keys, mask, False, rngs={'dropout': jax.random.key(seed)}
    ).product()
  )
  assert (run(0) != run(1)).any()
  np.testing.assert_array_equal(run(0), run(0))
  np.testing.assert_allclose(
    apply(module, params, query, keys, mask),
    apply(drawn[0], params, query, keys, mask),
    atol=1e-6,
  )


@given(
  st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=5, max_size=5)
)
@settings(max_examples=40)
def test_masked_softmax(drawn):
  logits, mask = map(np.array, zip(*drawn))
  found = masked_softmax(
    jnp.asarray(logits, jnp.float32), jnp.asarray(mask, bool)
  )
  kept = np.exp(np.where(mask, logits - logits.max(), -np.inf))
  if mask.any():
    kept = np.exp(logits - logits[mask].max()) * mask
  np.testing.assert_allclose(
    found, kept / kept.sum() if mask.any() else np.zeros(5), atol=1e-5
  )


def test_masked_softmax_bears_any_logit():
  logits = jnp.array([1e30, -1e30, 0.0])

  def total(logits, mask):
    return jnp.sum(masked_softmax(logits, mask) * jnp.array([1.0, 2.0, 4.0]))

  for mask in ([1, 1, 1], [0, 1, 1], [0, 0, 0]):
    value, grad = jax.value_and_grad(total)(logits, jnp.array(mask, bool))
    assert np.isfinite(value) and np.all(np.isfinite(grad))
