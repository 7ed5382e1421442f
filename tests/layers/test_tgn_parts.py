"""TGN's memory and attention against those of torch_geometric.

The golden values come from `TGNMemory` (identity messages, last aggregator)
and `TransformerConv` of torch_geometric 2.8.1 on torch 2.13.0, with weights
rounded to the digits written here.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.layers import gru
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.attention import SingleQueryAttention
from dynllm_jax.layers.memory_update import GRU
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ROOM_FOR_ALL

DAY = 86_400
GOLDEN_MEMORY = {
  'time_weight': [-0.084, -0.2365],
  'time_bias': [-0.9855, 0.314],
  'weight_ih': [
    [1.0185, 0.3215, -0.3665, -0.244, -0.117, 0.3535, 0.134, -0.415],
    [0.634, 0.137, -0.3075, -0.0115, 0.586, 0.1995, -0.3605, -1.1075],
    [-0.342, 0.258, 0.2795, 0.396, -0.0925, -0.366, 0.072, 0.292],
    [0.674, -0.407, 0.41, -0.3165, 0.6475, -0.1245, 0.313, -0.6115],
    [-0.3115, -0.108, -0.2445, 0.3935, -0.3665, 0.257, 0.3215, -0.599],
    [0.239, -0.615, -0.685, 0.21, 0.5645, 0.213, -0.0645, -0.0275],
    [0.204, 0.563, -0.304, -0.181, -0.7535, -0.2545, 0.6425, 0.122],
    [0.265, -1.379, -0.028, 0.2585, -0.798, 0.2705, 0.543, 0.623],
    [0.0575, -0.7175, 0.3595, -0.6855, 0.4365, 0.0325, -0.485, -0.444],
  ],
  'weight_hh': [
    [-0.05, 1.068, 0.035],
    [0.2495, 0.439, 0.1945],
    [0.7315, 0.24, 1.3175],
    [0.114, 0.162, 0.149],
    [-0.3425, -0.0215, 0.9195],
    [-0.2775, 0.3935, 0.341],
    [0.759, -0.3175, -0.0815],
    [0.2465, -0.239, -0.9435],
    [0.3715, -0.046, -0.7155],
  ],
  'bias_ih': [
    -0.778,
    -0.2105,
    -0.2435,
    0.1855,
    0.4215,
    -0.252,
    0.0755,
    0.33,
    0.407,
  ],
  'bias_hh': [
    -0.0405,
    -0.079,
    0.284,
    -0.3565,
    0.276,
    1.034,
    -1.0545,
    0.182,
    0.267,
  ],
  'z': [
    [-0.107437, 0.229256, 0.014517],
    [-0.133481, 0.239897, 0.044739],
    [-0.14976, 0.265288, 0.028148],
    [-0.129565, 0.278841, 0.034715],
    [-0.183844, 0.124209, 0.090028],
    [-0.076414, 0.318607, -0.022788],
  ],
}
GOLDEN_ATTENTION = {
  'x': [
    [-0.822, -2.141, 0.1, -0.698],
    [0.954, 0.733, -1.455, -2.046],
    [0.416, 0.268, -0.152, 0.794],
    [-0.39, 1.278, 0.515, 0.349],
  ],
  'edges': [[0.207, -0.932], [1.358, -0.154], [-0.824, -0.416], [0.8, -2.097]],
  'query': [
    [0.71, -0.146, -0.747, 0.726],
    [0.01, -0.996, 0.979, -0.441],
    [-0.409, 0.783, -1.521, -0.315],
    [-0.765, -0.475, -0.495, -0.198],
  ],
  'key': [
    [1.947, 2.037, 1.038, 0.333],
    [0.277, -0.981, 0.889, 1.569],
    [0.877, -0.482, -0.173, -0.105],
    [0.148, 2.419, 1.328, -0.264],
  ],
  'value': [
    [0.761, -2.635, 0.543, -0.107],
    [-0.514, -0.564, -0.918, -0.75],
    [0.217, 0.527, -1.277, -0.114],
    [-0.788, -0.17, -2.175, 0.72],
  ],
  'edge': [[-2.469, 1.593], [-0.545, -0.592], [-1.247, 0.829], [0.258, -0.566]],
  'out': [
    [-4.097842, -1.444734, 0.447925, -0.560214],
    [-5.872819, -0.015516, -2.400917, 1.922214],
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
  ],
}


# Users 1 to 3, their items and days, one event a node and batch.
BATCHES = (
  ([1, 2, 3], [1, 2, 3], [0, 0, 0]),
  ([1, 2, 3], [2, 3, 1], [1, 3, 4]),
  ([1, 2, 3], [3, 1, 2], [6, 8, 8]),
)
# What each node of the attention hears.
NEAR = [[1, 2, 3], [2], [], []]


def columns(rows):
  return np.array(rows, np.float32).T


def test_tgn_memory_is_that_of_torch_geometric():
  """With one event each the last message is the only one.

  Then the ordered update and TGN's are the same. A node that was never seen
  starts there from zero, and hears an empty message before its first.
  """
  g = GOLDEN_MEMORY
  bias, hidden_bias = np.array(g['bias_ih']), np.array(g['bias_hh'])
  params = {
    'params': {
      'gru': {
        'inputs': columns(g['weight_ih']),
        'hidden': columns(g['weight_hh']),
        'bias': (bias + np.concatenate([hidden_bias[:6], np.zeros(3)])).astype(
          np.float32
        ),
        'hidden_bias': hidden_bias[6:].astype(np.float32),
      }
    }
  }
  module = MemoryUpdate(3, cell=GRU)
  weights = params['params']['gru']
  silence = gru.project_inputs(weights, jnp.zeros([1, 8]))
  initial = gru.gru(weights, jnp.zeros([1, 3]), silence)
  encode = lambda days: jnp.cos(
    days[..., None] * np.array(g['time_weight']) + np.array(g['time_bias'])
  ).astype(jnp.float32)
  sides = [memory_lib.empty(3, 3, 3) for _ in range(2)]
  for users, items, days in BATCHES:
    nodes = [jnp.array(users), jnp.array(items)]
    own = [
      memory_lib.read(side, ids, initial[0]) for side, ids in zip(sides, nodes)
    ]
    prepared = [
      module.apply(
        params,
        side,
        ids,
        EventBatch(*nodes, jnp.array(days) * DAY, jnp.ones(3, bool)),
        state,
        jnp.concatenate([state, other], axis=-1),
        encode,
      )
      for side, ids, state, other in zip(sides, nodes, own, own[::-1])
    ]
    sides = memory_update.apply_all(ROOM_FOR_ALL, *prepared)
  found = np.concatenate([side.state[1:] for side in sides])
  np.testing.assert_allclose(found, g['z'], atol=2e-5)


def test_tgn_attention_is_that_of_torch_geometric():
  """`TransformerConv` with times on its edges, without skip or bias.

  It adds an edge's part to key and value; here key and value are one map of
  neighbor and time code side by side.
  """
  g = GOLDEN_ATTENTION
  nodes, edges = np.array(g['x']), np.array(g['edges'])
  heads = lambda *maps: np.concatenate([columns(m) for m in maps]).reshape(
    -1, 2, 2
  )
  nothing = np.zeros((4, 2))  # the conv's query sees no time
  params = {
    'params': {
      'query': heads(g['query'], nothing),
      'key': heads(g['key'], g['edge']),
      'value': heads(g['value'], g['edge']),
      'out': np.eye(4),
    }
  }
  near = np.array([row + [0] * (3 - len(row)) for row in NEAR])
  mask = np.array([np.arange(3) < len(row) for row in NEAR])
  codes = np.zeros((4, 3, 2))
  codes[mask] = edges
  found = (
    SingleQueryAttention(4, 2)
    .apply(params, [nodes, np.ones(2)], [nodes[near], codes], mask, True)
    .product()
  )
  np.testing.assert_allclose(found, g['out'], atol=2e-5)


def test_golden_memory_comes_from_torch_geometric():
  """Runs with the extra `peers`; users are its nodes 0 to 2, items 3 to 5."""
  torch = pytest.importorskip('torch')
  tgn = pytest.importorskip('torch_geometric.nn.models.tgn')
  g = GOLDEN_MEMORY
  memory = tgn.TGNMemory(
    6, 1, 3, 2, tgn.IdentityMessage(1, 3, 2), tgn.LastAggregator()
  )
  # Its messages hold features of the event too: here a column of zeros.
  inputs = np.insert(np.array(g['weight_ih']), 6, 0.0, axis=1)
  for parameter, value in (
    (memory.gru.weight_ih, inputs),
    (memory.gru.weight_hh, g['weight_hh']),
    (memory.gru.bias_ih, g['bias_ih']),
    (memory.gru.bias_hh, g['bias_hh']),
    (memory.time_enc.lin.weight, np.array(g['time_weight'])[:, None]),
    (memory.time_enc.lin.bias, g['time_bias']),
  ):
    parameter.data = torch.tensor(value, dtype=torch.float32)
  memory.train()
  for users, items, days in BATCHES:
    memory.update_state(
      torch.tensor(users) - 1,
      torch.tensor(items) + 2,
      torch.tensor(days),
      torch.zeros(3, 1),
    )
  memory.eval()  # applies what the last batch left
  states = memory(torch.arange(6))[0].detach().numpy()
  np.testing.assert_allclose(states, g['z'], atol=2e-6)


def test_golden_attention_comes_from_torch_geometric():
  """Runs with the extra `peers`."""
  torch = pytest.importorskip('torch')
  nn = pytest.importorskip('torch_geometric.nn')
  g = GOLDEN_ATTENTION
  conv = nn.TransformerConv(
    4, 2, heads=2, edge_dim=2, bias=False, root_weight=False
  )
  for name in ('query', 'key', 'value', 'edge'):
    getattr(conv, f'lin_{name}').weight.data = torch.tensor(g[name])
  edges = torch.tensor([[k, node] for node in range(4) for k in NEAR[node]]).T
  out = conv(torch.tensor(g['x']), edges, torch.tensor(g['edges']))
  np.testing.assert_allclose(out.detach().numpy(), g['out'], atol=2e-6)
