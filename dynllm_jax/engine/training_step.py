"""One training step: memory, loss, gradients, parameters (SPEC 4)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dynllm_jax.engine import feeds
from dynllm_jax.engine import precision
from dynllm_jax.engine import sparse_update
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import training_loss
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Loss
from dynllm_jax.types import Params
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TrainState

_PROPAGATE = 2  # folded into a step's key, which its loss splits in two


class Trainer(NamedTuple):
  """What a training step is compiled for; hashable.

  Attributes:
    system: what is trained.
    clip: limits all gradients together; it has no state.
    optimizer: changes each parameter by its own gradient and moments alone.
    config: `config.train`.
    mesh: the devices.
  """

  system: System
  clip: optax.GradientTransformation
  optimizer: optax.GradientTransformation
  config: ml_collections.FrozenConfigDict
  mesh: jax.sharding.Mesh


class _StepBatch(NamedTuple):
  """A batch as one step trains on it."""

  batch: EventBatch
  events: Array  # i32[batch, ...], positions in the log
  real: Array  # bool[], False for a step of padding
  key: Array  # of this step


def train_step(
  trainer: Trainer,
  data: feeds.EpochData,
  state: TrainState,
  planned: PlannedBatch,
) -> tuple[TrainState, tuple[Array, Array]]:
  """One step of SPEC 4 on one batch of the plan.

  Args:
    trainer: the trainer.
    data: of the epoch.
    state: before the step.
    planned: the batch; one of size 0 changes nothing.

  Returns:
    The state after the step, and of the batch the sum of its losses and the
    number of its events.
  """
  with precision.products(trainer.config.precision):
    return _train_step(trainer, data, state, planned)


def _train_step(
  trainer: Trainer,
  data: feeds.EpochData,
  state: TrainState,
  planned: PlannedBatch,
) -> tuple[TrainState, tuple[Array, Array]]:
  """`train_step`, in the precision that products are traced with."""
  real = planned.size > 0
  batch, events = sharded_table.shard_first_axis(
    feeds.read_batch(data, planned)
  )
  key = jax.random.fold_in(state.key, state.step)
  objective = functools.partial(
    _objective, trainer, data, state, _StepBatch(batch, events, real, key)
  )

  # Of large tables only those rows have gradients that the step reads.
  rows = sparse_update.find_rows(objective, state.params)
  (_, (loss, memory)), grads = jax.value_and_grad(
    lambda params: objective(sparse_update.attach_ids(rows, params)),
    has_aux=True,
  )(sparse_update.read_rows(rows, state.params))
  if loss.user_vectors is not None:
    loss = loss._replace(
      **sharded_table.shard_first_axis(
        {'user_vectors': loss.user_vectors, 'item_vectors': loss.item_vectors}
      )
    )

  grads, _ = trainer.clip.update(grads, trainer.clip.init(grads))
  params, opt_state = sparse_update.update(
    trainer.optimizer,
    rows,
    grads,
    params=state.params,
    opt_state=state.opt_state,
    real=real,
  )
  return device_mesh.constrain(
    TrainState(
      step=state.step + real,
      params=params,
      opt_state=opt_state,
      # Nothing was due in a step that is not real.
      memory=memory_lib.shaped_as(memory, state.memory),
      pending=jax.tree.map(
        functools.partial(jnp.where, real),
        feeds.add_pending(trainer.system, state.pending, batch, loss, planned),
        state.pending,
      ),
      key=state.key,
    )
  ), (loss.total, jnp.sum(batch.mask))


def _objective(
  trainer: Trainer,
  data: feeds.EpochData,
  state: TrainState,
  step: _StepBatch,
  params: Params,
) -> tuple[Array, tuple[Loss, SystemMemory]]:
  """What a step minimizes, a mean over events; the loss; the memory to keep."""
  config = trainer.config
  bound = BoundSystem(trainer.system, params, data.inputs)
  memory = bound.update(
    state.memory,
    pending_updates.due(state.pending, step.real, data.own_limits),
  )
  tables = bound.propagate(memory, jax.random.fold_in(step.key, _PROPAGATE))

  batch, events, key = step.batch, step.events, step.key
  if trainer.system.loss is not None:
    loss = trainer.system.loss(
      params, tables, data.inputs, batch, events, key, config
    )
  else:
    limits = data.dedup_limits
    embed, visit = dedup.embed_visits(bound, tables, batch, limits.visits)
    loss = training_loss.sampled_loss(
      config,
      embed,
      data.inputs,
      batch=batch,
      events=events,
      key=key,
      visit=visit,
      num_distinct=limits.items,
    )
  count = jnp.maximum(jnp.sum(batch.mask), 1)
  return (loss.total + loss.decay) / count, (loss, memory)
