"""SASRec against a slow forward pass, one query at a time."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import feeds
from dynllm_jax.models import sasrec
from dynllm_jax.types import InputError
from dynllm_jax.types import PlannedBatch
from tests.testing import logs
from tests.testing import variants

LENGTH = 5
LOG = logs.random_log(2, num_users=4, num_items=9, num_events=90, num_times=25)
INPUTS = logs.random_inputs(LOG)
CONFIG = sasrec.default_config()
CONFIG.update(dim=6, max_length=LENGTH, num_heads=2, dropout=0.4)
SYSTEM = sasrec.build(CONFIG)
PARAMS = logs.random_params(lambda key: SYSTEM.init(key, INPUTS, 1)[0])


def norm(p, x):
  centered = x - x.mean(-1, keepdims=True)
  scaled = centered / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return scaled * p['scale'] + p['bias']


def slow_query(items, window=None):
  """The query after the last of some items, oldest first.

  Args:
    items: what it sees.
    window: how many inputs the sequence has that they stand first in, which
      sets their positions; all of them if None.
  """
  p = jax.tree.map(lambda x: np.asarray(x, float), PARAMS)
  if not items:
    return p['nobody']
  first = LENGTH - (window or len(items))
  x = np.array(
    [
      p['items'][item] * np.sqrt(6) + p['positions'][first + k]
      for k, item in enumerate(items)
    ]
  )
  for block in range(2):
    attention, y = p[f'attention_{block}'], norm(p[f'LayerNorm_{2 * block}'], x)
    q, k, v = (
      y @ attention[name]['kernel'] for name in ('query', 'key', 'value')
    )
    for row in range(len(x)):
      for head in (slice(0, 3), slice(3, 6)):
        weights = np.exp(
          [q[row, head] @ k[j, head] / np.sqrt(3) for j in range(row + 1)]
        )
        x[row, head] += weights / weights.sum() @ v[: row + 1, head]
    first_layer, second = p[f'Dense_{2 * block}'], p[f'Dense_{2 * block + 1}']
    y = norm(p[f'LayerNorm_{2 * block + 1}'], x)
    hidden = np.maximum(y @ first_layer['kernel'] + first_layer['bias'], 0)
    x = x + hidden @ second['kernel'] + second['bias']
  return norm(p['last_norm'], x[-1])


def earlier_items(user, time):
  return [
    int(i)
    for u, i, t in zip(LOG.users, LOG.items, LOG.times)
    if u == user and t < time
  ]


def test_a_query_reads_the_last_strictly_earlier_events():
  embed = jax.jit(
    lambda *args: SYSTEM.embed(PARAMS, (), INPUTS, *args, jnp.int32(0), None)
  )
  users, items = embed(
    jnp.asarray(LOG.users), jnp.asarray(LOG.times, jnp.int32), jnp.arange(1, 10)
  )
  lengths = set()
  for user, time, found in zip(LOG.users, LOG.times, users.vector):
    past = earlier_items(user, time)[-LENGTH:]
    lengths.add(len(past))
    np.testing.assert_allclose(found, slow_query(past), rtol=2e-4, atol=2e-5)
  assert {0, LENGTH} < lengths
  np.testing.assert_array_equal(items.vector, PARAMS['items'][1:])


def test_all_targets_of_a_sequence_in_one_pass():
  table = feeds.sequence_table(LOG, LENGTH)
  data = feeds.EpochData(INPUTS, jnp.asarray(table), len(table))
  batch, _ = feeds.read_batch(data, PlannedBatch(0, len(table), 0, True))
  network = sasrec.SASRec(ml_collections.FrozenConfigDict(CONFIG))
  users, _ = network.apply(
    {'params': PARAMS},
    INPUTS,
    batch.users[:, 0],
    batch.times,
    jnp.array([1]),
    True,
  )
  found = users.vector.reshape(*table.shape, -1)
  partly = 0
  for row, vectors in zip(table, found):
    real = row[row >= 0]
    user, last = LOG.users[real[0]], LOG.times[real[-1]]
    reach = len(earlier_items(user, last))
    window = min(reach, LENGTH)
    for event, vector in zip(real, vectors):
      seen = earlier_items(user, LOG.times[event])
      items = seen[reach - window :]
      assert bool(items) == bool(seen)  # no target lacks its history
      partly += 0 < len(items) < window
      np.testing.assert_allclose(
        vector, slow_query(items, window), rtol=2e-4, atol=2e-5
      )
  assert partly > 10


def test_the_loss_is_the_papers():
  """Binary cross-entropy with a negative a target, no dropout, by hand."""
  dry = ml_collections.ConfigDict(CONFIG)
  dry.dropout = 0.0
  system = sasrec.build(dry)
  train = config_lib.default('sasrec').train
  assert (train.loss, train.num_negatives) == ('bce', 1)
  order = jnp.asarray(feeds.sequence_table(LOG, LENGTH))
  batch, events = feeds.read_batch(
    feeds.EpochData(INPUTS, order, 4), PlannedBatch(3, 2, 0, True)
  )
  frozen = ml_collections.FrozenConfigDict(train)
  loss = jax.jit(
    lambda key: (
      system.loss(PARAMS, (), INPUTS, batch, events, key, frozen).total
    )
  )
  found = [float(loss(jax.random.key(k))) for k in range(200)]
  # Over many draws a negative's part is its mean over what is allowed.
  expected = 0.0
  table = np.asarray(PARAMS['items'], float)
  for k in np.asarray(events)[np.asarray(batch.mask)]:
    user, time = LOG.users[k], LOG.times[k]
    row = np.argwhere(np.asarray(events) == k)[0][0]
    last = np.asarray(batch.times[row]).max()
    reach = len(earlier_items(user, last))
    window = min(reach, LENGTH)
    scores = table @ slow_query(
      earlier_items(user, time)[reach - window :], window
    )
    taken = {
      i
      for u, i, t in zip(LOG.users, LOG.items, LOG.times)
      if (u, t) == (user, time)
    }
    rivals = [x for x in range(1, 10) if x not in taken]
    expected += np.log1p(np.exp(-scores[LOG.items[k]]))
    expected += np.mean(np.log1p(np.exp(scores[rivals])))
  spread = np.std(found) / np.sqrt(len(found))
  assert abs(np.mean(found) - expected) < 4 * spread


@pytest.mark.parametrize(
  'field, value', [('num_heads', 3), ('dropout', 1.0), ('max_length', 0)]
)
def test_a_bad_field_is_named(field, value):
  config = variants.tiny_config('sasrec').model
  config[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}: {value}'):
    sasrec.build(config)
