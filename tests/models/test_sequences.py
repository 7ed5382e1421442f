"""eSASRec and HSTU against slow forward passes, one query at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError
from tests.testing import logs

LENGTH, DIM, HEADS = 5, 6, 2
LOG = logs.random_log(2, num_users=4, num_items=9, num_events=90, num_times=25)
INPUTS = logs.random_inputs(LOG)


@functools.cache
def made(name):
  """A system of two blocks without dropout, and random parameters."""
  config = config_lib.default(name).model
  config.update(
    dim=DIM, max_length=LENGTH, num_blocks=2, num_heads=HEADS, dropout=0.0
  )
  system = config_lib.system_module(name).build(config)
  params = logs.random_params(lambda key: system.init(key, INPUTS, 1)[0])
  return system, params


def norm(p, x):
  centered = x - x.mean(-1, keepdims=True)
  scaled = centered / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return scaled * p['scale'] + p['bias']


def silu(x):
  return x / (1 + np.exp(-x))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def heads():
  return [slice(k, k + DIM // HEADS) for k in range(0, DIM, DIM // HEADS)]


def esasrec(p, x, times):
  """The output at the last of a few positions."""
  del times
  for k in range(2):
    y = norm(p[f'attention_norm_{k}'], x)
    attention = p[f'attention_{k}']
    q, key, v = (
      y @ attention[name]['kernel'] for name in ('query', 'key', 'value')
    )
    added = np.zeros_like(x)
    for row in range(len(x)):
      for head in heads():
        weights = np.exp(
          [
            q[row, head] @ key[j, head] / np.sqrt(DIM / HEADS)
            for j in range(row + 1)
          ]
        )
        added[row, head] = weights / weights.sum() @ v[: row + 1, head]
    gate = p[f'attention_gate_{k}']
    x = x + sigmoid(x @ gate['kernel'] + gate['bias']) * added

    y = norm(p[f'feed_norm_{k}'], x)
    first, second, third = (p[f'feed_{n}_{k}']['kernel'] for n in (1, 2, 3))
    gate = p[f'feed_gate_{k}']
    added = (silu(y @ first) * (y @ second)) @ third
    x = x + sigmoid(x @ gate['kernel'] + gate['bias']) * added
  return norm(p['last_norm'], x[-1])


def hstu(p, x, times):
  """The same; positions of a shorter history stand at the sequence's end."""
  for k in range(2):
    layer = p[f'layer_{k}']
    gate, v, q, key = np.split(
      silu(norm(layer['norm'], x) @ layer['parts']['kernel']), 4, axis=-1
    )
    sums = np.zeros_like(x)
    for row in range(len(x)):
      for head in heads():
        for j in range(row + 1):
          seconds = max(1, times[row] - times[j])
          bucket = min(127, int(math.log(seconds) // 0.301))
          bias = layer['by_distance'][row - j] + layer['by_time'][bucket]
          weight = silu(q[row, head] @ key[j, head] + bias) / LENGTH
          sums[row, head] += weight * v[j, head]
    out = p[f'out_{k}']
    gated = gate * norm(p[f'sum_norm_{k}'], sums)
    x = x + gated @ out['kernel'] + out['bias']
  return x[-1]


@pytest.mark.parametrize(
  'name, oracle, scale', [('esasrec', esasrec, 1.0), ('hstu', hstu, DIM**0.5)]
)
def test_a_query_reads_the_last_strictly_earlier_events(name, oracle, scale):
  system, params = made(name)
  users, items = jax.jit(
    lambda *args: system.embed(params, (), INPUTS, *args, jnp.int32(0), None)
  )(
    jnp.asarray(LOG.users), jnp.asarray(LOG.times, jnp.int32), jnp.arange(1, 10)
  )
  p = jax.tree.map(lambda x: np.asarray(x, float), params)
  lengths = set()
  for user, time, found in zip(LOG.users, LOG.times, users.vector):
    earlier = [
      e
      for e in range(LOG.num_events)
      if LOG.users[e] == user and LOG.times[e] < time
    ][-LENGTH:]
    lengths.add(len(earlier))
    expected = p['nobody']
    if earlier:
      rows = p['items'][LOG.items[earlier]] * scale
      rows = rows + p['positions'][LENGTH - len(earlier) :]
      expected = oracle(p, rows, LOG.times[earlier])
    if name == 'hstu':
      expected = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
  assert {0, LENGTH} <= lengths

  table = p['items'][1:]
  if name == 'hstu':
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert users.scale == pytest.approx(1 / 0.05)
  np.testing.assert_allclose(items.vector, table, rtol=1e-4)


@pytest.mark.parametrize(
  'name, field, value', [('esasrec', 'hidden_factor', 0), ('hstu', 'dim', 5)]
)
def test_a_bad_field_is_named(name, field, value):
  config = config_lib.default(name).model
  config[field] = value
  with pytest.raises(InputError, match=f'config.model.*{value}'):
    config_lib.system_module(name).build(config)
