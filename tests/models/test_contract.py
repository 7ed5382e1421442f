"""What every system must hold to; a new file in models/ is found by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.engine import training_step
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import pending_updates
from dynllm_jax.graph import training_graph
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import device_mesh
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import InputError
from dynllm_jax.types import NodeMemory
from dynllm_jax.types import PlannedBatch
from tests.testing import logs
from tests.testing import replays
from tests.testing import variants

BATCH, NUM_EVENTS = replays.BATCH, 150


def pytest_generate_tests(metafunc):
  if 'variant' in metafunc.fixturenames:
    metafunc.parametrize('variant', variants.chosen(metafunc.config))


@functools.cache
def build(variant):
  config = variants.tiny_config(variant)
  module = config_lib.system_module(config.model.name)
  return config, module.build(config.model)


@functools.cache
def trained(variant):
  """A log, its inputs, and the state after three steps of training."""
  config, system = build(variant)
  log = logs.random_log(
    3, num_users=12, num_items=15, num_events=NUM_EVENTS, num_times=70
  )
  inputs = make_inputs(log)
  plan = feeds.training_plan(system, log, BATCH)
  trainer = train.make_trainer(
    system, config, device_mesh.make_mesh(config), len(plan.batches)
  )
  before = train.init_state(trainer, 0, inputs, plan.capacity)
  return (
    log,
    inputs,
    before,
    three_steps(trainer, plan, inputs, before),
    trainer,
    plan,
  )


def three_steps(trainer, plan, inputs, state):
  """The state after the first three steps of an epoch."""
  data = feeds.epoch_data(plan, inputs, state.key, state.step)
  data = data.replace(dedup_limits=dedup.DedupLimits())
  batches = list(plan.batches)
  if trainer.system.feed != 'none':
    # Again from the start where there are fewer.
    for planned in (batches * 3)[:3]:
      state, _ = train_step(trainer, data, state, planned)
  return state


def make_inputs(log, like=None):
  """Inputs whose compiled program does not depend on the log.

  Args:
    log: the log.
    like: inputs whose training figures and facets are taken over.
  """
  inputs = logs.random_inputs(log, padding=256, num_events=NUM_EVENTS)
  inputs = inputs.replace(
    train_graph=jax.tree.map(jnp.asarray, training_graph.train_graph(log)),
  )
  if like is not None:
    inputs = inputs.replace(
      train_events=like.train_events,
      facets=like.facets,
      mean_return_days=like.mean_return_days,
      train_graph=like.train_graph,
    )
  return inputs


train_step = jax.jit(training_step.train_step, static_argnums=0)


def test_shapes_and_declarations(variant):
  _, inputs, _, state, trainer, _ = trained(variant)
  system = trainer.system
  assert system.feed in feeds.FEEDS
  assert (system.sequence_length > 0) == (system.feed == 'sequences')

  @jax.jit
  def embed(params, memory, inputs, *args):
    memory = system.propagate(params, memory, inputs, None)
    return system.embed(params, memory, inputs, *args, None)

  users, items = embed(
    state.params,
    state.memory,
    inputs,
    jnp.array([1, 2, 0]),
    inputs.times[:3],
    jnp.array([3, 3, 1, 2]),
    inputs.times[0],
  )
  assert users.vector.ndim == items.vector.ndim == 2
  assert len(users.vector) == 3 and len(items.vector) == 4
  scores = scoring.score(users, items, inputs.num_items)
  assert scores.shape == (3, 4) and bool(jnp.isfinite(scores).all())
  np.testing.assert_array_equal(scores[:, 0], scores[:, 1])  # the same item
  own = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), items)
  np.testing.assert_allclose(
    scoring.score_rows(users, own), scores, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('how', ['changed', 'permuted', 'truncated'])
def test_no_score_sees_the_future(variant, how):
  log, inputs, _, state, trainer, _ = trained(variant)
  # The training split stands: what is learned from it must not change.
  cut = log.validation_end
  cut = int(np.searchsorted(log.times, log.times[cut - 1]))  # a time's start
  assert cut > log.train_end
  other = replays.changed_future(log, cut, how)
  altered = make_inputs(other, like=inputs)
  run = functools.partial(replays.all_scores, trainer.system, state.params)
  expected = run(state.memory, inputs, log)
  actual = run(state.memory, altered, other)
  np.testing.assert_array_equal(actual[:cut], expected[:cut])
  if how != 'truncated':  # and what comes after is seen, once it is past
    assert not np.array_equal(actual[cut:], expected[cut:])


def test_no_score_sees_its_own_time(variant):
  log, inputs, _, state, trainer, _ = trained(variant)
  times, counts = np.unique(log.times[log.train_end :], return_counts=True)
  start = int(np.searchsorted(log.times, times[np.argmax(counts)]))
  end = start + counts.max()
  assert end - start >= 2  # ties, so that one could see another
  # Nobody may see what is taken at that very time, the user's own included.
  other = replays.changed_future(log, start, 'items')
  altered = make_inputs(other, like=inputs)
  run = functools.partial(replays.all_scores, trainer.system, state.params)
  before = run(state.memory, inputs, log)
  after = run(state.memory, altered, other)
  np.testing.assert_array_equal(after[:end], before[:end])


def test_training_sees_no_later_split(variant):
  """Nothing after the training split changes what is learned.

  Nor what a system that learns nothing computes of its inputs at the start.
  """
  log, inputs, before, state, trainer, plan = trained(variant)
  other = replays.changed_future(log, log.train_end, 'changed')
  altered = make_inputs(other, like=inputs)
  fresh = train.init_state(trainer, 0, altered, plan.capacity)
  variants.assert_trees_equal(fresh, before)
  after = three_steps(trainer, plan, altered, fresh)
  variants.assert_trees_equal(after, state)


def test_a_static_system_scores_by_training_events_alone(variant):
  log, inputs, _, state, trainer, _ = trained(variant)
  if trainer.system.feed != 'shuffled':
    pytest.skip('reads what was taken since')
  cut = log.train_end
  other = replays.changed_future(log, cut, 'changed')
  altered = make_inputs(other, like=inputs)
  score = functools.partial(replays.all_scores, trainer.system, state.params)
  expected = score(state.memory, inputs, log)
  actual = score(state.memory, altered, other)
  of_user = dict(zip(log.users, expected))
  known = [k for k, u in enumerate(other.users) if u in of_user]
  assert any(k >= cut and other.users[k] != log.users[k] for k in known)
  for k in known:
    np.testing.assert_array_equal(actual[k], of_user[other.users[k]])


def test_padding_is_inert(variant):
  """Rows and steps of padding change no state, whatever they hold."""
  log, inputs, _, state, trainer, plan = trained(variant)
  if trainer.system.feed == 'none':
    ids = jnp.array([1, 0]), inputs.times[:2]
    bound = BoundSystem(trainer.system, state.params, inputs)
    pending = pending_updates.empty_pending_for(bound, state.memory, 2)
    pending = pending.replace(ready=jnp.array(True))
    memory = trainer.system.update(
      state.params,
      state.memory,
      inputs,
      pending.replace(
        events=pending.events.replace(users=ids[0], items=ids[0])
      ),
    )
    variants.assert_trees_equal(memory, state.memory)
    return
  order = feeds.epoch_order(plan, state.key, 0)
  size = min(int(plan.batches.size[0]), BATCH - 2)
  spoiled, junk = inputs, None
  if order is None:
    size = int(plan.batches.size[0])
    after = jnp.arange(len(inputs.users)) >= int(plan.batches.start[0]) + size
    spoiled = inputs.replace(
      users=jnp.where(after, 1, inputs.users),
      items=jnp.where(after, 2, inputs.items),
    )
  else:
    junk = order.at[size:].set(order[0])
  planned = plan.batches[0].replace(size=np.int32(size))
  step = functools.partial(train_step, trainer)
  data = feeds.EpochData(inputs, order, BATCH)
  variants.assert_trees_equal(
    step(data, state, planned),
    step(data.replace(inputs=spoiled, order=junk), state, planned),
  )
  zero = np.int32(0)
  nothing = PlannedBatch(zero, zero, zero, np.array(False))
  after, (loss, count) = step(data, state, nothing)
  kept = lambda s: s.replace(memory=trainer.system.reset(s.memory))
  variants.assert_trees_equal(kept(after), kept(state))
  variants.assert_trees_equal(_seen(after.memory), _seen(state.memory))
  assert loss == count == 0


def _seen(memory):
  """A memory without the scratch rows of node memories' latest update."""
  if isinstance(memory, NodeMemory):
    return memory.state, memory.time
  if hasattr(memory, '__dataclass_fields__'):
    return [
      _seen(getattr(memory, name)) for name in memory.__dataclass_fields__
    ]
  return memory


def test_every_parameter_learns_within_three_steps(variant):
  _, _, before, after, trainer, _ = trained(variant)
  if trainer.system.feed == 'none':
    assert not jax.tree.leaves(before.params)
    return
  for path, old in jax.tree_util.tree_leaves_with_path(before.params):
    new = after.params
    for part in path:
      new = new[part.key]
    assert not np.array_equal(old, new), jax.tree_util.keystr(path)
    assert np.isfinite(new).all(), jax.tree_util.keystr(path)


def test_a_second_run_is_identical(variant):
  _, inputs, _, state, trainer, plan = trained(variant)
  again = train.init_state(trainer, 0, inputs, plan.capacity)
  variants.assert_trees_equal(three_steps(trainer, plan, inputs, again), state)


def test_a_checkpoint_restores_bit_for_bit(variant, tmp_path):
  _, _, before, state, _, _ = trained(variant)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save('latest', 1, state, {})
    variants.assert_trees_equal(checkpoints.restore('latest', before), state)


def test_a_resumed_epoch_is_the_uninterrupted_one(variant, tmp_path):
  _, inputs, _, _, trainer, plan = trained(variant)
  if trainer.system.feed in ('stream', 'none'):
    pytest.skip('its epochs have one order; test_modes.py resumes a stream')
  epoch = functools.partial(
    train.run_epoch,
    trainer,
    inputs=inputs,
    plan=plan,
    progress=lambda events, loss: None,
  )
  start = lambda: train.init_state(trainer, 0, inputs, plan.capacity)
  first, _ = epoch(state=start())
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save('latest', 1, first, {})
    order = feeds.epoch_order(plan, first.key, first.step)
    whole, record = epoch(state=first)
    stored = checkpoints.restore('latest', start())
  assert not np.array_equal(order, feeds.epoch_order(plan, whole.key, 0))
  parts, again = epoch(state=stored)
  variants.assert_trees_equal(parts, whole)
  assert again['loss'] == record['loss']


@pytest.mark.parametrize('block', [4, 100])
def test_ranks_equal_a_brute_force(variant, block):
  log, inputs, _, state, trainer, _ = trained(variant)
  system = trainer.system
  plan = (
    batching.plan_by_time(log.times, 0, log.num_events)
    if system.by_time
    else batching.plan_batches(log.times, 0, log.num_events, BATCH)
  )
  candidates = np.ones(log.num_items + 1, bool)
  candidates[[0, 5]] = False
  _, ranks = evaluate.replay(
    BoundSystem(system, state.params, inputs),
    system.reset(state.memory),
    plan,
    Ranking(candidates, block),
  )
  scores = replays.all_scores(system, state.params, state.memory, inputs, log)
  near = 1e-6 * (1 + np.abs(scores))  # blocks may round a product otherwise
  for rank, row, item, slack in zip(ranks, scores, log.items, near):
    rivals = [
      x for x in range(1, log.num_items + 1) if candidates[x] and x != item
    ]
    gaps = np.array([row[x - 1] - row[item - 1] for x in rivals])
    slack = slack[item - 1]
    low = 1 + np.sum(gaps > slack) + np.sum(gaps == 0) / 2
    high = 1 + np.sum(gaps >= -slack)
    assert min(low, high) <= rank <= high
    if not np.any((np.abs(gaps) <= slack) & (gaps != 0)):
      assert rank == low


def test_an_unknown_variant_is_refused():
  with pytest.raises(InputError, match='lightyear.*allowed'):
    config_lib.default('lightyear')
