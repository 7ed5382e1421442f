"""Temporal graph attention against a recursion over plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.kernels import few_query_attention
from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.layers.temporal_attention import Sources
from dynllm_jax.layers.temporal_attention import TemporalEmbedding
from dynllm_jax.types import NodeTables
from tests.testing import logs

DIM, NEIGHBORS, HEADS = 4, 2, 2
DAY = 86_400
LATE = 10**9
ALL_SIDES = (('user', 2), ('item', 1))


def codes(days):
  """Two waves; any will do."""
  return TimeCodes(days, jnp.array([1.0, 1 / 9]) / (2 * np.pi))


@functools.cache
def world():
  """A log whose user 6 and item 8 have no event, and tables of nodes."""
  log = logs.random_log(0, num_users=5, num_items=7, num_events=30)
  log = logs.make_log(log.users, log.items, log.times, 6, 8)
  rng = np.random.default_rng(0)
  tables = {
    side: jnp.asarray(rng.normal(size=(count + 1, DIM)), jnp.float32)
    for side, count in (('user', 6), ('item', 8))
  }
  return log, logs.random_inputs(log), tables


def sources(tables):
  read = lambda side, nodes: tables[side][nodes]
  return Sources(world()[1], read, codes, deterministic=True)


@functools.cache
def build(num_layers, shared):
  """The module and the parameters of all its layers."""
  module = TemporalEmbedding(DIM, NEIGHBORS, num_layers, HEADS, shared)
  _, _, tables = world()
  one = jnp.ones([1], jnp.int32)

  def both(module):
    return [
      module(side, one, one, depth, sources(tables))
      for side, depth in (('user', num_layers), ('item', 1))
    ]

  return module, logs.random_params(functools.partial(module.init, method=both))


@functools.partial(jax.jit, static_argnums=(0, 2, 5))
def run(module, params, side, nodes, times, num_layers, tables):
  """The module's embeddings on the log of `world`, deterministically."""
  return module.apply(
    params,
    side,
    nodes,
    times,
    num_layers,
    sources(tables),
  ).product()


def attention(params, query, keys):
  """Plain multi-head attention of one query in float64."""
  p = {name: np.asarray(w, float) for name, w in params.items()}
  heads = []
  for head in range(HEADS):
    logits = keys @ p['key'][:, head] @ (query @ p['query'][:, head])
    weights = np.exp(logits / np.sqrt(DIM // HEADS))
    heads.append(weights / weights.sum() @ (keys @ p['value'][:, head]))
  return np.concatenate(heads) @ p['out']


def oracle(params, shared, side, node, time, depth):
  """`h^{N,(depth)}` of one node at one time (SPEC 3.3)."""
  log, _, tables = world()
  if depth == 0:
    return np.asarray(tables[side][node], float)
  own, other_side, other = (
    (log.users, 'item', log.items)
    if side == 'user'
    else (log.items, 'user', log.users)
  )
  past = [
    (int(other[e]), int(log.times[e]))
    for e in reversed(range(log.num_events))
    if own[e] == node and log.times[e] < time
  ][:NEIGHBORS]
  recurse = functools.partial(oracle, params, shared)
  code = lambda days: (
    np.sqrt(1 / 2)
    * np.array([wave(x) for x in (days, days / 9) for wave in (np.cos, np.sin)])
  )
  query = recurse(side, node, time, depth - 1)
  layer = params['params'][f'layers_{"both" if shared else side}_{depth}']
  attended = np.zeros(DIM)
  if past:
    keys = np.stack(
      [
        np.concatenate(
          [recurse(other_side, k, time, depth - 1), code((time - t_k) / DAY)]
        )
        for k, t_k in past
      ]
    )
    attended = attention(
      layer['SingleQueryAttention_0'], np.concatenate([query, code(0.0)]), keys
    )
  return logs.perceptron(layer['MLP_0'], np.concatenate([attended, query]))


@pytest.mark.parametrize(
  'num_layers, shared', [(1, True), (2, True), (2, False)]
)
def test_embedding_is_the_recursion(num_layers, shared):
  log, _, tables = world()
  module, params = build(num_layers, shared)
  late, middle = int(log.times[-1]) + 5, int(log.times[15])
  for side, nodes, depth in (
    ('user', [1, 3, 6, 0], num_layers),
    ('item', [2, 5, 8, 0], 1),
  ):
    times = [late, middle, late, late]
    found = run(
      module, params, side, jnp.array(nodes), jnp.array(times), depth, tables
    )
    expected = [
      oracle(params, shared, side, node, time, depth)
      for node, time in zip(nodes, times)
    ]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_sides_share_weights_or_not():
  names = lambda *args: set(build(*args)[1]['params'])
  assert names(2, True) == {'layers_both_1', 'layers_both_2'}
  # An item is one layer deep, and no other weight would ever be learned.
  assert names(2, False) == {'layers_user_1', 'layers_user_2', 'layers_item_1'}
  assert names(1, False) == {'layers_user_1', 'layers_item_1'}


@pytest.mark.parametrize('shared', [True, False])
def test_every_layer_is_learned(shared):
  module, params = build(2, shared)
  nodes, times = jnp.array([1, 2]), jnp.array([LATE, LATE])
  grads = jax.jit(
    jax.grad(
      lambda params: sum(
        jnp.sum(run(module, params, side, nodes, times, depth, world()[2]) ** 2)
        for side, depth in ALL_SIDES
      )
    )
  )(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.any(grad), path


def test_padding_content_does_not_matter():
  log, _, tables = world()
  module, params = build(2, True)
  other = {side: table.at[0].set(1e4) for side, table in tables.items()}
  # At the third time of the log most places hold no neighbor, some do.
  times = jnp.full(6, int(np.unique(log.times)[2]))
  for side, depth in ALL_SIDES:
    args = module, params, side, jnp.arange(1, 7), times, depth
    np.testing.assert_array_equal(run(*args, tables), run(*args, other))


def test_a_node_without_a_neighbor_is_its_merged_self():
  module, params = build(2, True)
  total = lambda params, tables: jnp.sum(
    run(module, params, 'user', jnp.array([6]), jnp.array([LATE]), 2, tables)
    ** 2
  )
  value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(params, world()[2])
  assert np.isfinite(value) and value > 0
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  own = np.asarray(grads[1]['user'])
  assert np.any(own[6]) and not np.any(own[:6])


@pytest.mark.parametrize('shared, many', [(True, False), (False, True)])
def test_a_layer_from_tables_is_the_layer(shared, many, monkeypatch):
  if many:  # so that all neighbors are taken at once
    monkeypatch.setattr(few_query_attention, 'MANY_KEYS', 0)
  log, inputs, rows = world()
  module, params = build(2, shared)

  def tabulate(module):
    return NodeTables(
      *(
        module.table_rows(side, rows[side], codes(jnp.zeros([])).rows())
        for side in ('item', 'user')
      )
    )

  tables = module.apply(params, method=tabulate)
  times = jnp.full(8, int(log.times[20])).at[:4].set(LATE)
  found = module.apply(
    params,
    *('item', jnp.arange(1, 9), times, 1),
    sources(rows)._replace(inputs=inputs.replace(tables=tables)),
  )
  expected = run(module, params, 'item', jnp.arange(1, 9), times, 1, rows)
  np.testing.assert_allclose(found.product(), expected, rtol=1e-5, atol=1e-5)
