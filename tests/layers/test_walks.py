"""Terms over temporal walks against an enumeration (SPEC 3.11)."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers.walks import CopyTerm
from dynllm_jax.layers.walks import WalkTerm
from tests.testing import logs

DAY = 86_400
USERS, ITEMS, EVENTS, TIME_DIM = 5, 6, 40, 4


def encode(days):
  """As a time encoding: of norm 1."""
  return (
    jnp.stack(
      [jnp.cos(days), jnp.sin(days), jnp.cos(days / 30), jnp.sin(days / 30)],
      axis=-1,
    )
    / (TIME_DIM / 2) ** 0.5
  )


_encode = jax.jit(encode)


def apply_random(module, *args):
  params = logs.random_params(module.init, *args)
  return jax.jit(lambda params: module.apply(params, *args))(params)


def world(seed):
  log = logs.random_log(seed, USERS, ITEMS, EVENTS, num_times=12)
  return log, logs.random_inputs(log)


def past(log, side, node, time, count):
  """(other node, time) strictly before, most recent first."""
  own, other = (
    (log.users, log.items) if side == 'user' else (log.items, log.users)
  )
  return [
    (int(other[e]), int(log.times[e]))
    for e in reversed(range(log.num_events))
    if own[e] == node and log.times[e] < time
  ][:count]


def queries(log):
  """Every user at three times, the padding user too."""
  times = [
    int(log.times[0]),
    int(log.times[EVENTS // 2]),
    int(log.times[-1]) + DAY,
  ]
  return [
    np.array(column, np.int32)
    for column in zip(
      *((user, time) for user in range(USERS + 1) for time in times)
    )
  ]


def by_item(terms, row):
  sums = collections.defaultdict(float)
  for item, weight in zip(
    terms.items[row].tolist(), terms.weights[row].tolist()
  ):
    sums[item] += weight
  return {item: total for item, total in sums.items() if item}


def test_no_weight_lies_on_padding():
  log, inputs = world(0)
  users, times = queries(log)
  copy = apply_random(CopyTerm(4), inputs, users, times, encode)
  walk, _ = apply_random(WalkTerm((3, 2, 2)), inputs, users, times)
  for terms in (copy, walk):
    padding = np.asarray(terms.items) == 0
    assert padding.any()
    assert not np.any(np.asarray(terms.weights)[padding])
    assert np.all(np.isfinite(terms.weights))


@pytest.mark.parametrize('fanout', [(3, 2, 2), (4, 5, 3)])
def test_walks_are_enumerated(fanout):
  constants = [0.3, -0.7, -0.4, 0.2]
  params = {
    'params': {'constants': jnp.array(constants), 'scale': jnp.float32(1.5)}
  }
  apply = jax.jit(WalkTerm(fanout).apply)
  found_any = 0
  for seed in range(2):
    log, inputs = world(seed)
    users, times = queries(log)
    terms, scale = apply(params, inputs, users, times)
    assert float(scale) == 1.5
    assert terms.items.shape == (len(users), math.prod(fanout))
    for row, (user, t) in enumerate(zip(users.tolist(), times.tolist())):
      sums = collections.defaultdict(float)
      for i_1, t_1 in past(log, 'user', user, t, fanout[0]):
        for v, t_2 in past(log, 'item', i_1, t, fanout[1]):
          if v == user:
            continue
          for i, t_3 in past(log, 'user', v, t, fanout[2]):
            sums[i] += math.exp(
              constants[0]
              + constants[1] * math.log(1 + (t - t_1) / DAY)
              + constants[2] * math.log(1 + (t - t_2) / DAY)
              + constants[3] * math.log(1 + abs(t_3 - t_2) / DAY)
            )
      assert by_item(terms, row) == pytest.approx(sums, rel=1e-4)
      found_any += len(sums)
  assert found_any > 20


def test_walk_by_hand():
  # User 2 took item 1 on day 1 and item 3 on day 4; user 1 took 1 on day 2.
  log = logs.make_log(
    [2, 1, 2, 1], [1, 1, 3, 2], [1 * DAY, 2 * DAY, 4 * DAY, 6 * DAY]
  )
  params = {
    'params': {
      'constants': jnp.array([0.0, -1.0, -1.0, -1.0]),
      'scale': jnp.float32(1.0),
    }
  }
  terms, _ = jax.jit(WalkTerm((2, 2, 2)).apply)(
    params, logs.random_inputs(log), jnp.array([1]), jnp.array([5 * DAY])
  )
  # t - t_1 = 3, t - t_2 = 4; t_3 is 4 for item 3 and 1 for item 1.
  assert by_item(terms, 0) == pytest.approx(
    {3: 1 / (1 + 3) / (1 + 4) / (1 + 3), 1: 1 / (1 + 3) / (1 + 4) / (1 + 0)}
  )


def test_walk_gradients_are_finite():
  log, inputs = world(1)
  users, times = queries(log)
  module = WalkTerm((3, 2, 2))
  params = {
    'params': {
      'constants': jnp.array([0.3, -0.7, -0.4, 0.2]),
      'scale': jnp.float32(1.5),
    }
  }

  def total(params):
    terms, scale = module.apply(params, inputs, users, times)
    return scale * jnp.sum(jnp.log1p(terms.weights))

  grads = jax.jit(jax.grad(total))(params)['params']
  assert np.all(np.isfinite(grads['constants']))
  assert np.all(np.asarray(grads['constants']) != 0)
  assert grads['scale'] != 0


# ----------------------------------------------------------------------- copy


def build_copy(inputs, num_neighbors, log):
  module = CopyTerm(num_neighbors)
  params = logs.random_params(module.init, inputs, *queries(log), encode)
  return jax.jit(module.apply, static_argnums=4), params


def weight_of(params, code, place):
  """g: a perceptron over the code, and a weight for the place."""
  p = jax.tree.map(np.asarray, params['params'])
  hidden = np.maximum(code @ p['Dense_0']['kernel'] + p['Dense_0']['bias'], 0)
  out = hidden @ p['Dense_1']['kernel'] + p['Dense_1']['bias']
  return float(out[0] + p['place'][place])


@pytest.mark.parametrize('num_neighbors', [3, 5])
def test_copy_sums_over_the_own_neighborhood(num_neighbors):
  log, inputs = world(2)
  apply, params = build_copy(inputs, num_neighbors, log)
  users, times = queries(log)
  terms = apply(params, inputs, users, times, encode)
  assert terms.items.shape == (len(users), num_neighbors)
  repeats = 0
  for row, (user, t) in enumerate(zip(users.tolist(), times.tolist())):
    sums = collections.defaultdict(float)
    own = past(log, 'user', user, t, num_neighbors)
    repeats += len(own) - len({item for item, _ in own})
    for place, (item, t_k) in enumerate(own):
      # An encoding has norm 1 over all its dims; g reads it at norm
      # sqrt(dims), whatever the number of neighbors.
      code = np.asarray(_encode(np.float32((t - t_k) / DAY)))
      sums[item] += weight_of(params, code * TIME_DIM**0.5, place)
    assert by_item(terms, row) == pytest.approx(sums, abs=1e-4)
  assert repeats > 0


def test_copy_reads_nothing_at_or_after_the_time():
  log, inputs = world(3)
  apply, params = build_copy(inputs, 3, log)
  first = int(log.times[0])
  users = np.arange(1, USERS + 1, dtype=np.int32)
  terms = apply(params, inputs, users, np.full(USERS, first, np.int32), encode)
  assert not np.any(terms.items) and not np.any(terms.weights)


def test_copy_weights_are_learned():
  log, inputs = world(2)
  apply, params = build_copy(inputs, 3, log)
  grads = jax.grad(
    lambda params: jnp.sum(
      apply(params, inputs, *queries(log), encode).weights ** 2
    )
  )(params)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.all(np.isfinite(grad)) and np.any(grad), path
