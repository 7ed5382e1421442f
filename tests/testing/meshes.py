"""Trains and ranks one system on one device and on meshes of eight.

Run by test_device_mesh.py in a process of its own, with eight fake devices:
`python -m tests.testing.meshes FOLDER VARIANT SHAPE...`, a shape as `4x2`.
"""

import functools
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
import optax

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.engine.training_step import Trainer
from dynllm_jax.graph import training_graph
from dynllm_jax.objectives import dedup
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import owners
from dynllm_jax.parallel import sharded_table
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import NodeMemory
from tests.testing import logs
from tests.testing import variants

BATCH = 32
dedup.STEP = 4  # so small a batch repeats users and items
owners.STEP = 1  # and a device has room for no more events than it gets
EPOCHS = 2
# Sums over devices are taken in another order. Plain gradient descent keeps
# that rounding what it is; Adam would turn a gradient of rounding alone into
# a full step. Frequencies step far less: a phase is a frequency times years
# in days, which makes a change of the sixth digit one of the first.
LOSS_TOLERANCE = dict(rtol=1e-5)
STATE_TOLERANCE = dict(rtol=1e-3, atol=1e-5)


class Placed(NamedTuple):
  """A system on a mesh, before training."""

  log: object
  mesh: object
  trainer: Trainer
  plan: batching.BatchPlan
  inputs: object
  state: object


def place(variant: str, shape: tuple[int, int]) -> Placed:
  """The inputs and the first state of a variant on a mesh `data` x `nodes`."""
  log = logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=14
  )
  config = variants.tiny_config(variant)
  config.mesh.data, config.mesh.nodes = shape
  mesh = device_mesh.make_mesh(config)
  assert list(mesh.devices.ravel()) == jax.devices()[: shape[0] * shape[1]]
  system = config_lib.system_module(config.model.name).build(config.model)
  inputs = jax.tree.map(np.asarray, logs.random_inputs(log, padding=2 * BATCH))
  inputs = inputs.replace(train_graph=training_graph.train_graph(log))
  plan = feeds.training_plan(system, log, BATCH, mesh)
  assert all(plan.dedup_limits) == (system.feed == 'stream'), plan.dedup_limits
  trainer = train.make_trainer(system, config, mesh, len(plan.batches))
  trainer = trainer._replace(
    optimizer=optax.multi_transform(
      {'frequency': optax.sgd(1e-6), 'other': optax.sgd(0.1)}, _labels
    )
  )
  placed = device_mesh.put_on_mesh(
    mesh, device_mesh.cut_into_blocks(mesh, inputs)
  )
  state = device_mesh.compute_on_mesh(
    mesh,
    functools.partial(train.init_state, trainer, 0, capacity=plan.capacity),
    placed,
  )
  return Placed(log, mesh, trainer, plan, placed, state)


def _labels(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      'frequency' if path[-1].key == 'log_time_frequencies' else 'other'
    ),
    params,
  )


def epochs(placed: Placed):
  """Losses of two epochs, and the state after them."""
  state, losses = placed.state, []
  for _ in range(EPOCHS):
    state, record = train.run_epoch(
      placed.trainer,
      state,
      placed.inputs,
      placed.plan,
      lambda events, loss: None,
    )
    losses.append(record['loss'])
  return losses, state


def ranks(placed: Placed, state):
  """Ranks of validation and test, blocks of the catalogue included."""
  system, log = placed.trainer.system, placed.log
  plan = batching.plan_batches(log.times, log.train_end, log.num_events, BATCH)
  plan = batching.with_dedup_limits(plan, log)
  plan = batching.with_own_limits(plan, log, placed.mesh)
  candidates = np.ones(log.num_items + 1, bool)
  candidates[[0, 5]] = False
  with sharded_table.use_mesh(placed.mesh):
    bound = BoundSystem(system, state.params, placed.inputs)
    memory = evaluate.memory_for_replay(bound, state.memory, state.pending)
    among = Ranking(device_mesh.put_on_mesh(placed.mesh, candidates), 8)
    return evaluate.replay(bound, memory, plan, among)[1]


def real_rows(tree, log):
  """A memory's host arrays without the rows that a mesh adds."""

  def of(node):
    if not isinstance(node, NodeMemory):
      return np.asarray(node)
    return [np.asarray(x) for x in (node.state, node.time)]

  memory = jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, NodeMemory))
  if not hasattr(tree, 'user'):
    return memory
  sides = [memory.user, memory.item]
  return [
    [x[: count + 1] for x in side]
    for side, count in zip(sides, (log.num_users, log.num_items))
    if side
  ]


def compare(folder: pathlib.Path, variant: str, shapes) -> None:
  """Asserts that every mesh does what one device does."""
  one = place(variant, (1, 1))
  losses, state = epochs(one)
  single = ranks(one, state)
  memory = real_rows(state.memory, one.log)
  params = jax.tree.map(np.asarray, state.params)
  with Checkpoints(folder / 'one') as checkpoints:
    checkpoints.save('latest', EPOCHS, state, {})
  for shape in shapes:
    many = place(variant, shape)
    for name, leaf in jax.tree_util.tree_leaves_with_path(
      (many.state.memory, many.inputs)
    ):
      blocks = (
        leaf.shape[0] // leaf.sharding.shard_shape(leaf.shape)[0]
        if (leaf.ndim)
        else 1
      )
      assert blocks in (1, shape[1]), name
    with Checkpoints(folder / 'one') as checkpoints:
      restored = checkpoints.restore('latest', many.state)
    np.testing.assert_array_equal(ranks(many, restored), single)
    mesh_losses, mesh_state = epochs(many)
    np.testing.assert_allclose(mesh_losses, losses, **LOSS_TOLERANCE)
    near = functools.partial(np.testing.assert_allclose, **STATE_TOLERANCE)
    jax.tree.map(near, jax.tree.map(np.asarray, mesh_state.params), params)
    jax.tree.map(near, real_rows(mesh_state.memory, one.log), memory)
    # And back: what a mesh saved ranks alike on one device.
    name = f'{shape[0]}x{shape[1]}'
    with Checkpoints(folder / name) as checkpoints:
      checkpoints.save('latest', EPOCHS, mesh_state, {})
      back = checkpoints.restore('latest', one.state)
    np.testing.assert_array_equal(ranks(one, back), ranks(many, mesh_state))


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  compare(
    pathlib.Path(sys.argv[1]),
    sys.argv[2],
    [tuple(map(int, shape.split('x'))) for shape in sys.argv[3:]],
  )
  print('equal')
