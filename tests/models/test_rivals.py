"""Embeddings and updates of the temporal rivals against their equations."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.layers.local_attention import LocalAttention
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from tests.testing import logs

pytestmark = pytest.mark.slow  # the contract has one of them in a quick run

DIM, DAY = 4, 86_400
NUM_USERS, NUM_ITEMS, NEIGHBORS = 5, 6, 3
LATE = 10**9


@functools.cache
def world():
  """A log in which user 5 and item 6 have no event, and its inputs."""
  log = logs.random_log(
    1, num_users=NUM_USERS - 1, num_items=NUM_ITEMS - 1, num_events=30
  )
  log = logs.make_log(log.users, log.items, log.times, NUM_USERS, NUM_ITEMS)
  return log, logs.random_inputs(log)


@functools.cache
def build(name, **fields):
  """The network of a system, random parameters, a memory and the inputs."""
  config = config_lib.default(name).model
  config_lib.set_known(
    config,
    dim=DIM,
    time_dim=6,
    num_neighbors=NEIGHBORS,
    num_layers=1,
    dropout=0.0,
    **fields,
  )
  module = config_lib.system_module(name)
  network = {
    'jodie': 'JODIE',
    'dyrep': 'DyRep',
    'tgn': 'TGN',
    'dmf': 'DMF',
    'dynshare': 'DynShare',
  }[name]
  network = getattr(module, network)(ml_collections.FrozenConfigDict(config))
  widths, (log, inputs) = network.widths, world()
  rng = np.random.default_rng(0)

  def side(nodes, count, width):
    if not width:
      return None
    last = [log.times[nodes == k].max(initial=-1) for k in range(1, count)]
    return memory_lib.write(
      memory_lib.empty(count, width, count),
      jnp.arange(1, count + 1) * (jnp.arange(count) < count - 1),
      jnp.asarray(rng.uniform(0.1, 1.0, (count, width)), jnp.float32),
      jnp.array([*last, -1]),
    )

  memory = Memory(
    side(log.users, NUM_USERS, widths.user),
    side(log.items, NUM_ITEMS, widths.item),
  )
  one = jnp.ones([1], jnp.int32)
  params = logs.random_params(
    functools.partial(
      network.init,
      method='touch',
      users=one,
      user_times=one,
      items=one,
      item_time=one[0],
      deterministic=True,
    ),
    memory,
    inputs,
    pending_updates.empty_pending(1, DIM, DIM),
  )
  return network, params, memory, inputs


def embed(name, users, times, items, time, **fields):
  """A system's embeddings of users at their times and of items at one time."""
  network, params, memory, inputs = build(name, **fields)
  return network.apply(
    params,
    memory,
    inputs,
    jnp.array(users),
    jnp.array(times),
    jnp.array(items),
    jnp.int32(time),
    True,
    method='embed',
  )


def pending_of(users, items, times):
  """Events whose update is due, with vectors of zeros."""
  size = len(users)
  return Pending(
    EventBatch(
      jnp.array(users), jnp.array(items), jnp.array(times), jnp.ones(size, bool)
    ),
    jnp.zeros([size, DIM]),
    jnp.zeros([size, DIM]),
    jnp.array(True),
  )


def updated(name, users, items, times, **fields):
  """The memory after some events, at most one of a node unless ordered."""
  network, params, memory, inputs = build(name, **fields)
  return network.apply(
    params, memory, inputs, pending_of(users, items, times), method='update'
  )


def weights(name, **fields):
  """Parameters in float64."""
  return jax.tree.map(
    lambda w: np.asarray(w, float), build(name, **fields)[1]['params']
  )


def code(p, days):
  """phi of SPEC 3.1."""
  w = np.exp(p['encode']['log_time_frequencies'])
  return (
    np.stack([np.cos(w * days), np.sin(w * days)], -1).reshape(-1)
    * (2 / 6) ** 0.5
  )


def state(name, side, node, **fields):
  """A node's memory, or the initial one."""
  memory = getattr(build(name, **fields)[2], side)
  if int(memory.time[node]) < 0:
    return weights(name, **fields)[f'initial_{side}']
  return np.asarray(memory.state[node], float)


def gap(name, side, node, time):
  last = int(getattr(build(name)[2], side).time[node])
  return (time - last) / DAY if last >= 0 else 0.0


def neighbors(side, node, time):
  """A node's latest neighbors before a time, newest first."""
  log, _ = world()
  own, other = (
    (log.users, log.items) if side == 'user' else (log.items, log.users)
  )
  return [
    int(other[e])
    for e in reversed(range(log.num_events))
    if own[e] == node and log.times[e] < time
  ][:NEIGHBORS]


def sigmoid_cell(p, hidden, inputs):
  return 1 / (
    1 + np.exp(-(inputs @ p['inputs'] + hidden @ p['hidden'] + p['bias']))
  )


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def layer_norm(x):
  return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def test_jodie_predicts_the_next_item():
  users, items = embed('jodie', [1, 5], [LATE, LATE], [2, 6], LATE)
  p, (_, inputs) = weights('jodie'), world()
  static = p['item_static']['Embed_0']['embedding']
  item = lambda k: np.concatenate([static[k], state('jodie', 'item', k)])
  for row, k in zip(items.vector, [2, 6]):
    np.testing.assert_allclose(row, item(k), atol=1e-5)
  for row, user in zip(users.vector, [1, 5]):
    last = int(build('jodie')[2].user.time[user])
    elapsed = (
      (LATE - last) / DAY / float(inputs.mean_return_days) if last >= 0 else 1.0
    )
    projected = layer_norm(
      state('jodie', 'user', user) * (1 + elapsed * p['project']['weight'])
    )
    before = [item(k) for k in neighbors('user', user, LATE)[:1]]
    expected = dense(
      p['predict'],
      np.concatenate(
        [
          projected,
          p['user_static']['Embed_0']['embedding'][user],
          *(before or [np.zeros(DIM)]),
        ]
      ),
    )
    np.testing.assert_allclose(row, expected, atol=1e-4)


def test_jodie_updates_each_side_by_the_other():
  users, items, time = [1, 5], [6, 2], LATE
  after, p = updated('jodie', users, items, [time, time]), weights('jodie')
  for user, item in zip(users, items):
    u, i = state('jodie', 'user', user), state('jodie', 'item', item)
    for side, node, own, other in (('user', user, u, i), ('item', item, i, u)):
      expected = sigmoid_cell(
        p[f'updates_{side}']['rnn'],
        own,
        np.concatenate([other, code(p, gap('jodie', side, node, time))]),
      )
      np.testing.assert_allclose(
        getattr(after, side).state[node], expected, atol=1e-3
      )


@pytest.mark.parametrize('time', [0, LATE])
def test_dyrep_hears_of_the_other_nodes_neighborhood(time):
  """With a middle time, neighbors before it alone are heard of."""
  log, _ = world()
  time = time or int(log.times[12])
  users, items = [1, 5], [6, 2]
  after, p = updated('dyrep', users, items, [time, time]), weights('dyrep')

  def struct(side, node, other):
    near = [state('dyrep', other, k) for k in neighbors(side, node, time)]
    if not near:
      return np.zeros(DIM)
    return LocalAttention(DIM).apply(
      {'params': p['attend']},
      state('dyrep', side, node)[None],
      np.array(near)[None],
      np.ones((1, len(near)), bool),
    )[0]

  for user, item in zip(users, items):
    for side, node, message in (
      ('user', user, struct('item', item, 'user')),
      ('item', item, struct('user', user, 'item')),
    ):
      days = gap('dyrep', side, node, time)
      expected = sigmoid_cell(
        p['update_memory']['rnn'],
        state('dyrep', side, node),
        np.concatenate([message, code(p, days)]),
      )
      np.testing.assert_allclose(
        getattr(after, side).state[node], expected, atol=1e-3
      )


def test_tgn_reads_memory_and_features_of_both_in_a_message():
  """An item's features change messages, and no user's own hidden state."""
  p = weights('tgn', item_id_embedding=True)
  static = p['item_static']['Embed_0']['embedding']
  after = updated('tgn', [1], [2], [LATE], item_id_embedding=True)
  user, item = (
    state('tgn', side, k, item_id_embedding=True)
    for side, k in (('user', 1), ('item', 2))
  )
  cell = p['update_memory']['gru']
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  for side, node, own, message in (
    ('user', 1, user, [user, item + static[2]]),
    ('item', 2, item, [item + static[2], user]),
  ):
    x = np.concatenate([*message, code(p, gap('tgn', side, node, LATE))])
    r, z, n = np.split(x @ cell['inputs'] + cell['bias'], 3)
    hr, hz, hn = np.split(own @ cell['hidden'], 3)
    new = np.tanh(n + sigmoid(r + hr) * (hn + cell['hidden_bias']))
    z = sigmoid(z + hz)
    np.testing.assert_allclose(
      getattr(after, side).state[node], (1 - z) * new + z * own, atol=1e-3
    )


def test_dynshare_projects_users_and_has_weights_of_each_direction():
  users, items = embed('dynshare', [1, 5], [LATE, LATE], [2], LATE)
  np.testing.assert_allclose(np.mean(users.vector, -1), 0, atol=1e-5)
  np.testing.assert_allclose(np.std(users.vector, -1), 1, atol=1e-3)
  assert items.vector.shape == (1, DIM)
  names = set(weights('dynshare')['temporal'])
  assert names == {'layers_user_1', 'layers_item_1'}


def test_dmf_carries_users_to_their_times():
  p = weights('dmf')
  last = int(build('dmf')[2].user.time[1])
  users, items = embed('dmf', [1, 5], [last + 3 * DAY] * 2, [2], LATE)
  learned = p['filter']
  kept = np.exp(-3 * np.exp(learned['log_decay']))
  deviation = state('dmf', 'user', 1)[:DIM]
  np.testing.assert_allclose(
    users.vector[0], learned['prior'] + kept * deviation, atol=1e-5
  )
  np.testing.assert_allclose(users.vector[1], learned['prior'], atol=1e-6)
  np.testing.assert_allclose(
    items.vector[0], p['item_static']['Embed_0']['embedding'][2], atol=1e-6
  )


def test_dmf_follows_a_user_and_leaves_others():
  before = build('dmf')[2].user
  after = updated('dmf', [1, 1], [2, 3], [LATE, LATE + DAY]).user
  assert int(after.time[1]) == LATE + DAY
  np.testing.assert_array_equal(after.state[2:], before.state[2:])
  # Two events, one after the other, as two batches would apply them.
  network, params, memory, inputs = build('dmf')
  for item, time in ((2, LATE), (3, LATE + DAY)):
    memory = network.apply(
      params, memory, inputs, pending_of([1], [item], [time]), method='update'
    )
  np.testing.assert_allclose(after.state[1], memory.user.state[1], rtol=1e-4)


@pytest.mark.parametrize('name', ['jodie', 'dyrep', 'tgn', 'dynshare', 'dmf'])
def test_gradients_are_finite_after_decades(name):
  """Two events at one time are one update, and the other place is padding."""
  network, params, memory, inputs = build(name)
  pending = pending_of([1, 1], [2, 3], [LATE, LATE])

  def total(params):
    after = network.apply(params, memory, inputs, pending, method='update')
    return sum(
      jnp.sum(side.state + side.fresh.sum())
      for side in (after.user, after.item)
      if side
    )

  for leaf in jax.tree.leaves(jax.grad(total)(params)):
    assert np.isfinite(leaf).all()
