"""Steps that touch the rows they read, against steps over whole tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynllm_jax.engine import feeds
from dynllm_jax.engine import sparse_update
from dynllm_jax.engine.training_step import train_step
from dynllm_jax.parallel import sharded_table
from tests.testing import logs
from tests.testing import tiny_runs
from tests.testing import variants

BATCH = 16


def build(variant, num_users=1500, num_items=3000, shapes=False):
  """A trainer, its inputs, its batches and a first state, or its shapes."""
  # Few nodes are in use, so that a step reads a row several times.
  log = tiny_runs.small_log()
  log = logs.make_log(log.users, log.items, log.times, num_users, num_items)
  run = tiny_runs.prepare(variants.tiny_config(variant), log, batch=BATCH)
  state = jax.eval_shape(run.first_state) if shapes else run.first_state()
  return run.trainer, run.inputs, run.plan.batches, state


def stepper(trainer, inputs):
  data = feeds.EpochData(inputs, None, BATCH)
  step = jax.jit(functools.partial(train_step, trainer, data))
  return lambda state, planned: step(state, planned)[0]


def learned(state):
  """Parameters and moments as arrays by path."""
  leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize(
  'variant',
  [
    pytest.param('tgn, text and ids', marks=pytest.mark.slow),
    pytest.param('jodie', marks=pytest.mark.slow),
    'dmf',
  ],
)
def test_rows_that_are_read_change_as_whole_tables_do(variant, monkeypatch):
  monkeypatch.setattr(sparse_update, 'BLOCK', 7)  # several blocks
  trainer, inputs, batches, start = build(variant)
  of_rows = stepper(trainer, inputs)
  before = of_rows(start, batches[0])
  after = learned(of_rows(before, batches[1]))
  monkeypatch.setattr(sparse_update, 'find_rows', lambda *_: {})
  whole = stepper(trainer, inputs)
  # Without moments a row that is not read stands still either way.
  first, expected = learned(before), learned(whole(start, batches[0]))
  for path, value in first.items():
    np.testing.assert_allclose(value, expected[path], 1e-4, 1e-7, err_msg=path)
  expected = learned(whole(before, batches[1]))
  tables = 0
  for path, value in after.items():
    moved = np.ones(value.shape, bool)
    if 'embedding' in path:
      tables += 1
      moved = np.broadcast_to(
        (value != first[path]).any(axis=1)[:, None], value.shape
      )
      assert 0 < moved[:, 0].sum() < len(value) / 4
      if '.mu' in path:  # of Adam: whatever has a gradient must have moved
        gradient = expected[path] - 0.9 * first[path]
        assert moved[np.abs(gradient) > 1e-6].all(), path
    np.testing.assert_allclose(
      value[moved], expected[path][moved], 1e-4, 1e-7, err_msg=path
    )
  assert tables == 3 * (2 if variant == 'jodie' else 1)


def rows_where(touched, new, old):
  """A table's new rows where they are touched; all of anything else is new."""
  return jnp.where(touched, new, old) if new.ndim == 2 else new


@pytest.mark.parametrize('read', [0, 1, 7, 8, 12])
def test_each_row_is_updated_once(monkeypatch, read):
  """Of 12 places, in blocks of 7: the second block begins at the sixth."""
  monkeypatch.setattr(sparse_update, 'BLOCK', 7)
  rng = np.random.default_rng(read)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  ids = np.sort(rng.choice(40, read, replace=False)).astype(np.int32)
  params = {'part': {'embedding': normal(40, 3), 'kernel': normal(2)}}
  path = ('part', 'embedding')
  optimizer = optax.adam(0.1)
  state = optimizer.init(params)
  padded = np.concatenate(
    [ids, np.full(12 - read, sharded_table.NO_ROW, np.int32)]
  )
  for _ in range(2):
    grads = {'part': {'embedding': normal(12, 3), 'kernel': normal(2)}}
    whole = {
      'part': {
        **grads['part'],
        'embedding': jnp.zeros([40, 3])
        .at[ids]
        .set(grads['part']['embedding'][:read]),
      }
    }
    changes, expected_state = optimizer.update(whole, state, params)
    expected = optax.apply_updates(params, changes), expected_state
    found = jax.jit(functools.partial(sparse_update.update, optimizer))(
      {path: padded}, grads, params, state, True
    )
    touched = np.isin(np.arange(40), ids)[:, None]
    expected = jax.tree.map(
      functools.partial(rows_where, touched), expected, (params, state)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      found,
      expected,
    )
    params, state = found


@pytest.mark.slow
def test_a_padding_step_changes_no_row():
  trainer, inputs, batches, start = build('tgn, text and ids')
  step = stepper(trainer, inputs)
  state = step(start, batches[0])
  nothing = batches[1].replace(size=np.int32(0))
  expected = learned(state)
  for path, value in learned(step(state, nothing)).items():
    np.testing.assert_array_equal(value, expected[path])


@pytest.mark.slow
def test_the_work_of_a_step_does_not_grow_with_the_tables():
  def flops(num_items):
    trainer, inputs, batches, state = build(
      'tgn, text and ids', num_items=num_items, shapes=True
    )
    data = feeds.EpochData(inputs, None, BATCH)
    step = jax.jit(functools.partial(train_step, trainer, data))
    return step.lower(state, batches[0]).compile().cost_analysis()['flops']

  assert flops(6000) == flops(3000)


@pytest.mark.slow
def test_a_table_that_is_read_whole_is_left_whole():
  trainer, inputs, batches, state = build(
    'tgn, text and ids', num_users=12, num_items=15, shapes=True
  )
  del batches
  objective = functools.partial(
    trainer.system.embed,
    inputs=inputs,
    users=jnp.arange(5),
    user_times=jnp.arange(5),
    items=jnp.arange(15),
    item_time=jnp.int32(0),
    key=None,
  )
  found = []

  def find(params, memory):
    rows = functools.partial(objective, memory=memory)
    found.append(sparse_update.find_rows(rows, params))

  jax.eval_shape(find, state.params, state.memory)
  assert found == [{}]
