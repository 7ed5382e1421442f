"""Layers of the static graph models beside torch_geometric's, where it is.

It comes with the extra `peers`; without it these tests are skipped, and the
values of a few nodes in test_static_graph.py stand for them.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.graph import training_graph
from dynllm_jax.models.gat import GATLayer
from dynllm_jax.models.gcn import GCN
from dynllm_jax.models.graphsage import GraphSAGE
from dynllm_jax.models.lightgcn import LightGCN
from tests.testing import logs

torch = pytest.importorskip('torch')
geometric = pytest.importorskip('torch_geometric.nn')

DIM, HEADS = 5, 3
LOG = logs.random_log(
  4, num_users=30, num_items=25, num_events=300, num_times=200
)
NODES = LOG.num_users + LOG.num_items + 2
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(NODES, DIM)).astype(np.float32)
GRAPH = jax.tree.map(jnp.asarray, training_graph.train_graph(LOG))


def edges():
  """i64[2, edges] of the distinct training pairs, both ways."""
  pairs = {
    (int(user), int(LOG.num_users + 1 + item))
    for user, item in zip(
      LOG.users[: LOG.train_end], LOG.items[: LOG.train_end]
    )
  }
  both = sorted(pairs | {(item, user) for user, item in pairs})
  return torch.tensor(both).T


def run_peer(layer, weights):
  """The layer of torch_geometric with weights by name, on our node table."""
  state = {name: torch.tensor(value) for name, value in weights.items()}
  layer.load_state_dict(state)
  with torch.no_grad():
    return layer(torch.tensor(TABLE), edges()).numpy()


def run_ours(network, name, layer):
  config = config_lib.default(name).model
  config.update({'dim': DIM, 'num_layers': 1})
  params = {'NodeFeatures_0': {'ids': jnp.asarray(TABLE)}, **layer}
  text = np.zeros((LOG.num_items + 1, 1), np.float16)
  return network(ml_collections.FrozenConfigDict(config)).apply(
    {'params': params}, GRAPH, text, True
  )


def random(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def test_gcn():
  kernel, bias = random(DIM, DIM), random(DIM)
  expected = run_peer(
    geometric.GCNConv(DIM, DIM), {'lin.weight': kernel.T, 'bias': bias}
  )
  found = run_ours(GCN, 'gcn', {'layer_0': {'kernel': kernel, 'bias': bias}})
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_graphsage():
  own, near, bias = random(DIM, DIM), random(DIM, DIM), random(DIM)
  expected = run_peer(
    geometric.SAGEConv(DIM, DIM, normalize=True),
    {'lin_l.weight': near.T, 'lin_l.bias': bias, 'lin_r.weight': own.T},
  )
  found = run_ours(
    GraphSAGE,
    'graphsage',
    {'layer_0': {'kernel': np.concatenate([own, near]), 'bias': bias}},
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lightgcn():
  """The mean of the layers, of which the second is an `LGConv`."""
  expected = run_peer(geometric.LGConv(), {})
  found = run_ours(LightGCN, 'lightgcn', {})
  np.testing.assert_allclose(2 * found - TABLE, expected, atol=1e-5)


@pytest.mark.parametrize('mean', [False, True])
def test_gat(mean):
  kernel, query, key = (
    random(DIM, HEADS * DIM),
    random(HEADS, DIM),
    random(HEADS, DIM),
  )
  bias = random(DIM if mean else HEADS * DIM)
  expected = run_peer(
    geometric.GATConv(DIM, DIM, heads=HEADS, concat=not mean),
    {
      'lin.weight': kernel.T,
      'att_dst': query[None],
      'att_src': key[None],
      'bias': bias,
    },
  )
  found = GATLayer(HEADS, DIM, mean).apply(
    {
      'params': {
        'Dense_0': {'kernel': kernel},
        'query': query,
        'key': key,
        'bias': bias,
      }
    },
    GRAPH,
    TABLE,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
