"""Propagation over the training graph against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import training_graph
from dynllm_jax.kernels import graph_attention
from dynllm_jax.kernels import propagation
from tests.testing import logs

DIM, HEADS = 3, 2


def star_log(num_users, num_items):
  """Every user took item 1, user 1 every item, and some pairs repeat."""
  users = [*range(1, num_users + 1), *[1] * num_items, 1, 2]
  items = [*[1] * num_users, *range(1, num_items + 1), 2, 1]
  extra = len(users)  # later splits, other pairs
  users += [num_users] * extra
  items += [num_items] * extra
  log = logs.make_log(
    users, items, range(len(users)), num_users + 1, num_items + 1
  )
  assert log.train_end >= extra
  return log


def edgeless_log():
  return logs.make_log([1, 2], [1, 2], [0, 0], 3, 2)


LOGS = {
  'random': logs.random_log(1, 9, 12, 80, 40),
  'two levels': star_log(18, 3),
  'three levels': star_log(5, 270),  # 270 > 16 ** 2
  'no edge': edgeless_log(),
}


@pytest.fixture(params=LOGS)
def log(request):
  return LOGS[request.param]


def random(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_graph_is_of_distinct_training_pairs(log):
  graph, matrix = training_graph.train_graph(log), logs.adjacency(log)
  np.testing.assert_array_equal(graph.degrees, matrix.sum(0))
  found = np.zeros_like(matrix)
  for owner, row in zip(graph.owners, graph.levels[0]):
    for node in row[row > 0]:
      found[owner, node] += 1
  np.testing.assert_array_equal(found, matrix)
  for level in graph.levels:
    assert not level[0].any()  # what an empty place of the next level reads


def test_the_work_follows_the_edges():
  """No level has more rows than nodes and FAN_IN-th part of what it sums."""
  graph = training_graph.train_graph(LOGS['three levels'])
  assert len(graph.levels) == 3
  nodes, edges = len(graph.degrees), graph.degrees.sum()
  below = edges
  for level in graph.levels:
    assert len(level) <= 1 + nodes + below / training_graph.FAN_IN
    below = len(level)
  assert len(graph.levels[-1]) == nodes


def test_the_future_changes_no_graph():
  log = LOGS['random']
  items = log.items.copy()
  items[log.train_end :] = 1
  other = logs.make_log(
    log.users, items, log.times, log.num_users, log.num_items
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    training_graph.train_graph(other),
    training_graph.train_graph(log),
  )


def test_sums_and_means_and_their_gradients(log):
  graph, matrix = logs.train_graph(log), logs.adjacency(log)
  degrees = matrix.sum(1)
  safe = np.where(degrees > 0, degrees, 1)
  root = np.where(degrees > 0, safe**-0.5, 0)
  x = random((len(matrix), DIM))
  x[0] = np.nan  # the padding row is not read
  clean = np.nan_to_num(x)
  weight = random((len(matrix), DIM), seed=1)
  for function, product in (
    (propagation.neighbor_sums, matrix),
    (propagation.normalized_sums, root[:, None] * matrix * root),
    (propagation.neighbor_means, matrix / safe[:, None]),
  ):
    np.testing.assert_allclose(
      jax.jit(function)(graph, x), product @ clean, atol=1e-5
    )
    gradient = jax.jit(
      jax.grad(lambda x, f=function: jnp.sum(weight * f(graph, x)))
    )(clean)
    np.testing.assert_allclose(gradient, product.T @ weight, atol=1e-5)


def dense_attention(matrix, query, key, value):
  """The softmax written out over a matrix of all pairs."""
  logits = jax.nn.leaky_relu(query[:, None] + key[None], 0.2)
  near = (matrix + np.eye(len(matrix)))[..., None] > 0
  alpha = jax.nn.softmax(jnp.where(near, logits, -jnp.inf), axis=1)
  return jnp.einsum('ijh,jhd->ihd', alpha, value)


@pytest.mark.parametrize('size', [1.0, 60.0])
def test_attention_and_its_gradients(log, size):
  """Logits of 60: exp(60 + 60) would overflow without the subtraction."""
  graph, matrix = logs.train_graph(log), logs.adjacency(log)
  args = [
    random((len(matrix), HEADS), 1) * size,
    random((len(matrix), HEADS), 2) * size,
    random((len(matrix), HEADS, DIM), 3),
  ]
  weight = random((len(matrix), HEADS, DIM), 4)
  run = lambda f, first: jax.jit(
    jax.value_and_grad(lambda args: jnp.sum(weight * f(first, *args)))
  )(args)
  np.testing.assert_allclose(
    jax.jit(graph_attention.attend)(graph, *args),
    dense_attention(matrix, *args),
    atol=1e-5,
  )
  actual = run(graph_attention.attend, graph)
  expected = run(dense_attention, matrix)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    actual,
    expected,
  )
