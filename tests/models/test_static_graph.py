"""Static graph models against dense matrices and published layers."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.models.gat import GAT
from dynllm_jax.models.gat import GATLayer
from dynllm_jax.models.gcn import GCN
from dynllm_jax.models.graphsage import GraphSAGE
from dynllm_jax.models.lightgcn import LightGCN
from dynllm_jax.models.ngcf import NGCF
from dynllm_jax.types import InputError
from tests.testing import logs

DIM, LLM_DIM = 4, 3
LOG = logs.random_log(2, num_users=6, num_items=8, num_events=40, num_times=30)
NODES = LOG.num_users + LOG.num_items + 2
TEXT = (
  np.random.default_rng(0)
  .normal(size=(LOG.num_items + 1, LLM_DIM))
  .astype(np.float16)
)


def symmetric(matrix):
  """`D^-1/2 M D^-1/2`, zero for a node of degree zero."""
  root = [d**-0.5 if d else 0.0 for d in matrix.sum(0)]
  return np.diag(root) @ matrix @ np.diag(root)


def config_of(name, **fields):
  config = config_lib.default(name).model
  config.update({'dim': DIM, **fields})
  return config


def run(network, config):
  """Random parameters in float64, and the node table they give."""
  network = network(ml_collections.FrozenConfigDict(config))
  graph = logs.train_graph(LOG)
  params = logs.random_params(
    functools.partial(network.init, deterministic=True), graph, TEXT
  )
  found = jax.jit(network.apply, static_argnums=3)(params, graph, TEXT, True)
  return jax.tree.map(lambda x: np.asarray(x, float), params['params']), found


def features(params):
  part = params['NodeFeatures_0']
  rows = part['ids'].copy()
  if 'Dense_0' in part:
    rows[LOG.num_users + 1 :] += TEXT.astype(float) @ part['Dense_0']['kernel']
  return rows


def dense(part, x):
  return x @ part['kernel'] + part['bias']


def leaky(x):
  return np.where(x > 0, x, 0.2 * x)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('layers', [1, 3])
def test_lightgcn(layers):
  params, found = run(LightGCN, config_of('lightgcn', num_layers=layers))
  first, product = features(params), symmetric(logs.adjacency(LOG))
  expected = sum(
    np.linalg.matrix_power(product, k) @ first for k in range(layers + 1)
  )
  np.testing.assert_allclose(found, expected / (layers + 1), atol=1e-5)


@pytest.mark.parametrize('normalize', [False, True])
def test_ngcf(normalize):
  params, found = run(NGCF, config_of('ngcf', normalize=normalize))
  product = symmetric(logs.adjacency(LOG))
  layer = features(params)
  expected = [layer]
  for k in range(2):
    sums = product @ layer
    layer = leaky(
      dense(params[f'sum_{k}'], sums + layer)
      + dense(params[f'product_{k}'], sums * layer)
    )
    expected.append(unit(layer) if normalize else layer)
  np.testing.assert_allclose(
    found, np.concatenate(expected, 1), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('item_text', [False, True])
def test_gcn(item_text):
  params, found = run(GCN, config_of('gcn', item_text=item_text))
  product = symmetric(logs.adjacency(LOG) + np.eye(NODES))
  hidden = dense(params['layer_0'], product @ features(params))
  expected = dense(params['layer_1'], product @ np.maximum(hidden, 0))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('item_text', [False, True])
@pytest.mark.parametrize('normalize', [False, True])
def test_graphsage(item_text, normalize):
  params, found = run(
    GraphSAGE, config_of('graphsage', item_text=item_text, normalize=normalize)
  )
  matrix = logs.adjacency(LOG)
  mean = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  layer = features(params)
  for k in range(2):
    layer = dense(params[f'layer_{k}'], np.hstack([layer, mean @ layer]))
    layer = np.maximum(layer, 0) if k == 0 else layer
    layer = unit(layer) if normalize else layer
  np.testing.assert_allclose(found, layer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('item_text', [False, True])
def test_gat(item_text):
  params, found = run(GAT, config_of('gat', item_text=item_text))
  near = logs.adjacency(LOG) + np.eye(NODES)
  layer = features(params)
  for k, width in enumerate((DIM // 2, DIM)):
    part = params[f'layer_{k}']
    value = (layer @ part['Dense_0']['kernel']).reshape(NODES, 2, width)
    heads = np.zeros_like(value)
    for node in range(NODES):
      for head in range(2):
        others = np.flatnonzero(near[node])
        logits = leaky(
          value[node, head] @ part['query'][head]
          + value[others, head] @ part['key'][head]
        )
        alpha = np.exp(logits) / np.exp(logits).sum()
        heads[node, head] = alpha @ value[others, head]
    layer = heads.reshape(NODES, -1) if k == 0 else heads.mean(1)
    layer = layer + part['bias']
    layer = np.where(layer > 0, layer, np.expm1(layer)) if k == 0 else layer
  np.testing.assert_allclose(found, layer, rtol=1e-4, atol=1e-4)


# ------------------------------------------- values of torch_geometric 2.8.1

# Users 1 to 3, items 1 to 5, of which nobody took the last in training.
PAIRS = [(1, 1), (1, 2), (2, 2), (2, 3), (3, 2), (1, 4), (1, 1), (2, 2)]
LATER = [(3, 5), (2, 1), (1, 3), (3, 5)]
GOLDEN_LOG = logs.make_log(*zip(*PAIRS, *LATER), range(len(PAIRS) + len(LATER)))
assert GOLDEN_LOG.train_end == len(PAIRS)
REAL = [1, 2, 3, 5, 6, 7, 8, 9]  # rows of users 1 to 3 and items 1 to 5


GCN_CONV = np.array(
  [
    [-0.362056, 0.860945],
    [-0.811386, 2.130337],
    [-0.816291, 2.095971],
    [0.042624, -0.208677],
    [-0.673238, 1.710157],
    [-0.815078, 2.107217],
    [-0.582376, 1.385073],
    [0.125000, -0.437500],
  ]
)
SAGE_CONV = np.array(
  [
    [-0.802083, 2.093750],
    [-0.625000, 1.625000],
    [-0.437500, 1.250000],
    [-0.281250, 0.593750],
    [-0.489583, 1.125000],
    [-0.625000, 1.625000],
    [0.343750, -1.000000],
    [-0.812500, 2.093750],
  ]
)
LG_CONV = np.array(
  [
    [0.061004, 0.160684],
    [0.251491, -0.863864],
    [-0.144338, -0.721688],
    [-0.288675, 0.721688],
    [0.512746, 0.110480],
    [0.176777, -0.530330],
    [-0.288675, 0.721688],
    [0.000000, 0.000000],
  ]
)
GAT_CONV = np.array(
  [
    [-0.325805, 1.269625, 0.063858, -0.571577],
    [-1.386310, 1.534225, 1.131873, -1.500000],
    [-1.191061, 2.022348, 0.996184, -1.500000],
    [0.879100, 0.322750, -0.936621, 0.562500],
    [-0.957575, 1.723549, 0.792563, -1.282654],
    [-1.307385, 1.731539, 0.969849, -1.500000],
    [-0.617127, 2.511648, -0.107641, -0.897189],
    [0.875000, 0.312500, -0.937500, 0.562500],
  ]
)
GAT_CONV_MEAN = np.array(
  [
    [-0.505974, 1.349024],
    [-0.502219, 1.017113],
    [-0.472438, 1.261174],
    [-0.403761, 1.442625],
    [-0.457506, 1.220447],
    [-0.543768, 1.115769],
    [-0.737384, 1.807229],
    [-0.406250, 1.437500],
  ]
)


def grid(*shape):
  """Small numbers without a pattern that a mistake would preserve."""
  count = int(np.prod(shape))
  return ((np.arange(count) * 7 + 3) % 11 - 5).reshape(shape) / 4


def golden_table():
  """`grid(8, 2)` in the rows of the real nodes."""
  table = np.zeros((10, 2), np.float32)
  table[REAL] = grid(8, 2)
  return table


def one_layer(network, config, layer):
  network = network(ml_collections.FrozenConfigDict(config))
  params = {'NodeFeatures_0': {'ids': jnp.asarray(golden_table())}, **layer}
  text = np.zeros((6, 1), np.float16)
  return network.apply(
    {'params': params}, logs.train_graph(GOLDEN_LOG), text, True
  )[jnp.array(REAL)]


def test_gcn_layer_equals_gcnconv():
  """`GCNConv(2, 2)`, its weight `grid(2, 2)` transposed, its bias `grid(2)`."""
  found = one_layer(
    GCN,
    config_of('gcn', dim=2, num_layers=1),
    {'layer_0': {'kernel': grid(2, 2), 'bias': grid(2)}},
  )
  np.testing.assert_allclose(found, GCN_CONV, atol=1e-5)


def test_graphsage_layer_equals_sageconv():
  """`SAGEConv`, `lin_l` of the neighbors, `lin_r` of the node itself."""
  kernel = np.concatenate([-0.5 * grid(2, 2), grid(2, 2)])
  found = one_layer(
    GraphSAGE,
    config_of('graphsage', dim=2, num_layers=1, normalize=False),
    {'layer_0': {'kernel': kernel, 'bias': grid(2)}},
  )
  np.testing.assert_allclose(found, SAGE_CONV, atol=1e-5)


def test_lightgcn_layer_equals_lgconv():
  """The mean of the layers, of which the second is an `LGConv`."""
  found = one_layer(LightGCN, config_of('lightgcn', dim=2, num_layers=1), {})
  np.testing.assert_allclose(2 * found - grid(8, 2), LG_CONV, atol=1e-5)


@pytest.mark.parametrize('mean', [False, True])
def test_gat_layer_equals_gatconv(mean):
  """`GATConv(2, 2, heads=2)`, `att_dst` the query, `att_src` the key."""
  params = {
    'Dense_0': {'kernel': grid(2, 4)},
    'query': grid(2, 2),
    'key': grid(2, 2) / 2,
    'bias': grid(2 if mean else 4),
  }
  found = GATLayer(2, 2, mean).apply(
    {'params': params}, logs.train_graph(GOLDEN_LOG), golden_table()
  )
  expected = GAT_CONV_MEAN if mean else GAT_CONV
  np.testing.assert_allclose(found[jnp.array(REAL)], expected, atol=1e-5)


# --------------------------------------------------------------------- rest


@pytest.mark.parametrize('name', ['gcn', 'gat', 'graphsage', 'ngcf'])
def test_dropout_changes_training_alone(name):
  system = config_lib.system_module(name).build(config_of(name, dropout=0.5))
  inputs = logs.random_inputs(LOG).replace(train_graph=logs.train_graph(LOG))
  params, memory = system.init(jax.random.key(0), inputs, 1)
  table = jax.jit(lambda key: system.propagate(params, memory, inputs, key))
  first, second = table(jax.random.key(1)), table(jax.random.key(2))
  assert not np.array_equal(first, second)
  plain = jax.jit(lambda: system.propagate(params, memory, inputs, None))
  np.testing.assert_array_equal(plain(), plain())


@pytest.mark.parametrize(
  'name, field, value',
  [
    ('gcn', 'dim', 0),
    ('ngcf', 'dropout', 1.0),
    ('lightgcn', 'num_layers', 0),
    ('gat', 'num_heads', 3),
    ('graphsage', 'dropout', -0.1),
  ],
)
def test_a_wrong_value_is_named(name, field, value):
  config = config_of(name)
  config[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}: .*allowed'):
    config_lib.system_module(name).build(config)
