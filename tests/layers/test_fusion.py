"""Fusion of graph and facets against SPEC 3.8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers import fusion
from dynllm_jax.layers.attention import SingleQueryAttention
from dynllm_jax.layers.fusion import Fusion
from dynllm_jax.layers.mlp import MLP
from tests.testing import logs

DIM, HEADS, FACETS, WIDTH, BATCH = 4, 2, 4, 3, 5
RNG = np.random.default_rng(0)
GRAPH = RNG.normal(size=(BATCH, DIM)).astype(np.float32)
TOKENS = RNG.normal(size=(BATCH, FACETS, WIDTH)).astype(np.float32)

_attend = jax.jit(SingleQueryAttention(DIM, HEADS).apply, static_argnums=4)


def build(**kwargs):
  module = Fusion(DIM, HEADS, **kwargs)
  params = logs.random_params(module.init, GRAPH, TOKENS, True)
  found = jax.jit(module.apply, static_argnums=3)(params, GRAPH, TOKENS, True)
  return params['params'], found


def attended(params, depth):
  """What the module's own attention layers make of the graph's vectors."""
  query = GRAPH
  for layer in range(depth):
    query = _attend(
      {'params': params[f'SingleQueryAttention_{layer}']},
      [query],
      [TOKENS],
      jnp.ones([BATCH, FACETS], bool),
      True,
    ).product()
  return np.asarray(query)


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_merge_is_a_perceptron_over_graph_and_attention(depth):
  params, found = build(num_layers=depth)
  joined = np.concatenate([GRAPH, attended(params, depth)], axis=1)
  np.testing.assert_allclose(
    found, logs.perceptron(params['MLP_0'], joined), atol=1e-5
  )


@pytest.mark.parametrize('depth', [1, 2])
@pytest.mark.parametrize('alpha', [0.0, 0.25, 1.0])
def test_blend_is_a_weighted_sum(alpha, depth):
  params, found = build(mode='blend', alpha=alpha, num_layers=depth)
  fed_forward = logs.perceptron(params['MLP_0'], TOKENS.reshape(BATCH, -1))
  np.testing.assert_allclose(
    found,
    alpha * attended(params, depth) + (1 - alpha) * fed_forward,
    atol=1e-5,
  )


@pytest.mark.parametrize('mode', ['residual', 'added'])
def test_facets_are_added_by_a_gate_that_starts_at_zero(mode):
  params, found = build(mode=mode)
  without = GRAPH
  if mode == 'residual':
    without = MLP(DIM).apply({'params': params['MLP_0']}, GRAPH).product()
  np.testing.assert_allclose(
    found, without + params['gate'] * attended(params, 1), atol=1e-5
  )
  first = Fusion(DIM, HEADS, mode=mode).init(
    jax.random.key(0), GRAPH, TOKENS, True
  )
  assert not np.any(first['params']['gate'])


@pytest.mark.parametrize('mode', fusion.FUSIONS)
def test_output_is_an_embedding_whatever_the_tokens(mode):
  module = Fusion(DIM, HEADS, mode=mode)
  for facets, width in ((1, 3), (4, 1), (2, 7)):
    found, _ = jax.eval_shape(
      lambda tokens: module.init_with_output(
        jax.random.key(0), GRAPH, tokens, True
      ),
      jnp.ones([BATCH, facets, width]),
    )
    assert found.shape == (BATCH, DIM)


def test_layers_have_weights_of_their_own():
  module = Fusion(DIM, HEADS, num_layers=2)
  names = set(logs.random_params(module.init, GRAPH, TOKENS, True)['params'])
  assert names == {'SingleQueryAttention_0', 'SingleQueryAttention_1', 'MLP_0'}
