"""Training: the step, and an epoch as compiled scans of many (SPEC 4)."""

from collections.abc import Callable
import functools
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dynllm_jax import checks
from dynllm_jax.engine import batching
from dynllm_jax.engine import feeds
from dynllm_jax.engine import resident_texts
from dynllm_jax.engine import sparse_update
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import losses
from dynllm_jax.objectives import negatives
from dynllm_jax.objectives import training_loss
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import System
from dynllm_jax.types import TrainState

_PROPAGATE = 2  # folded into a step's key; its loss splits it in two


class Trainer(NamedTuple):
  """What a training step is compiled for; hashable."""

  system: System
  clip: optax.GradientTransformation  # of all gradients; without a state
  optimizer: optax.GradientTransformation  # of each number by itself
  config: ml_collections.FrozenConfigDict  # config.train
  mesh: jax.sharding.Mesh


def make_trainer(
  system: System, config: ml_collections.ConfigDict, mesh, steps_per_epoch: int
) -> Trainer:
  """Checks `config.train` and builds the optimizer.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  train = config.train
  checks.check(
    'config.train',
    train,
    [
      checks.one_of('loss', losses.LOSSES),
      checks.one_of('negatives', negatives.NEGATIVES),
      checks.at_least('num_negatives', 1),
      checks.at_least('num_epochs', 1),
      checks.above_zero('learning_rate'),
      checks.share('final_learning_rate'),
      checks.at_least('warmup_steps', 0),
      checks.above_zero('max_gradient_norm'),
      checks.above_zero('max_time_gradient_norm'),
      checks.above_zero('margin'),
      checks.at_least('patience', 1),
      checks.at_least('chunk', 1),
      checks.at_least('regularization', 0),
    ],
  )
  total = train.num_epochs * steps_per_epoch
  rate = optax.cosine_decay_schedule(
    train.learning_rate,
    max(1, total - train.warmup_steps),
    train.final_learning_rate,
  )
  if train.warmup_steps:
    rate = optax.join_schedules(
      [
        optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps),
        rate,
      ],
      [train.warmup_steps],
    )
  clip = optax.multi_transform(
    {
      'time': optax.clip_by_global_norm(train.max_time_gradient_norm),
      'other': optax.clip_by_global_norm(train.max_gradient_norm),
    },
    _clip_labels,
  )
  return Trainer(
    system, clip, optax.adam(rate), ml_collections.FrozenConfigDict(train), mesh
  )


def _clip_labels(params):
  """The frequencies of the time encoding are clipped on their own."""
  name = 'log_time_frequencies'
  return jax.tree_util.tree_map_with_path(
    lambda path, _: 'time' if path[-1].key == name else 'other', params
  )


def init_state(
  trainer: Trainer, seed: int, inputs: Inputs, capacity: int
) -> TrainState:
  """The state before the first step.

  Args:
    trainer: the trainer.
    seed: of parameters, negatives and dropout.
    inputs: on the device.
    capacity: events that the pending batch holds.
  """
  key = jax.random.key(seed)
  init_key, run_key = jax.random.split(key)
  params, memory = jax.jit(trainer.system.init, static_argnums=2)(
    init_key, inputs, capacity
  )
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=trainer.optimizer.init(params),
    memory=memory,
    pending=pending_updates.empty_pending_for(
      trainer.system, params, memory, inputs, capacity
    ),
    key=run_key,
  )


def train_step(
  trainer: Trainer,
  batch_size: int,
  inputs: Inputs,
  state: TrainState,
  row: tuple[Array, Array, Array, Array],
  order: Array | None = None,
  dedup_limits: dedup.DedupLimits = dedup.DedupLimits(),
) -> tuple[TrainState, tuple[Array, Array]]:
  """One step of SPEC 4 on one batch of the plan.

  Args:
    trainer: the trainer.
    batch_size: rows of a batch.
    inputs: on the device.
    state: before the step.
    row: start, size, part and ready of the batch; size 0 changes nothing.
    order: of the epoch (feeds.py), None for that of the log.
    dedup_limits: of the plan; without it every event is embedded on its own.

  Returns:
    The state after the step, and of the batch the sum of its losses and the
    number of its events.
  """
  start, size, part, ready = row
  real = size > 0
  batch, events = feeds.read_batch(inputs, order, start, size, batch_size)
  batch, events = sharded_table.shard_first_axis((batch, events))
  key = jax.random.fold_in(state.key, state.step)
  objective_of = functools.partial(
    _objective, trainer, dedup_limits, inputs, state, batch, events, real, key
  )
  held = sparse_update.held_rows(objective_of, state.params)
  (_, (loss, memory)), grads = jax.value_and_grad(
    lambda params: objective_of(sparse_update.hold(held, params)), has_aux=True
  )(sparse_update.take(held, state.params))
  if loss.user_vectors is not None:
    loss = loss._replace(
      **sharded_table.shard_then_replicate(
        {'user_vectors': loss.user_vectors, 'item_vectors': loss.item_vectors}
      )
    )
  grads, _ = trainer.clip.update(grads, trainer.clip.init(grads))
  params, opt_state = sparse_update.update(
    trainer.optimizer, held, grads, state.params, state.opt_state, real
  )
  return device_mesh.constrain(
    TrainState(
      step=state.step + real,
      params=params,
      opt_state=opt_state,
      memory=memory,  # nothing was due in a step that is not real
      pending=jax.tree.map(
        functools.partial(jnp.where, real),
        feeds.add_pending(
          trainer.system, state.pending, batch, loss, part, ready
        ),
        state.pending,
      ),
      key=state.key,
    )
  ), (loss.total, jnp.sum(batch.mask))


def _objective(
  trainer, dedup_limits, inputs, state, batch, events, real, key, params
):
  """What is minimized, a mean over events; the loss; the memory to keep."""
  config, system = trainer.config, trainer.system
  memory = system.update(
    params, state.memory, inputs, pending_updates.due(state.pending, real)
  )
  tables = system.propagate(
    params, memory, inputs, jax.random.fold_in(key, _PROPAGATE)
  )
  if system.loss is not None:
    loss = system.loss(params, tables, inputs, batch, events, key, config)
  else:
    embed, visit = embed_deduplicated(
      system, params, tables, inputs, batch, dedup_limits
    )
    loss = training_loss.sampled_loss(
      config, embed, inputs, batch, events, key, visit
    )
  count = jnp.maximum(jnp.sum(batch.mask), 1)
  return (loss.total + loss.decay) / count, (loss, memory)


def embed_deduplicated(
  system: System,
  params: Params,
  memory: Any,
  inputs: Inputs,
  batch: EventBatch,
  dedup_limits: dedup.DedupLimits,
) -> tuple[training_loss.Embed, Array | None]:
  """`System.embed` for a batch, each of its visits and items once.

  Args:
    system, params, memory, inputs: of `System.embed`.
    batch: the events.
    dedup_limits: what it has at most.

  Returns:
    `embed` and `visit` of `training_loss.sampled_loss`.
  """
  users, times, visit = dedup.unique_visits(batch, dedup_limits.visits)
  users, times = sharded_table.shard_first_axis((users, times))
  size, num_items = len(batch.mask), dedup_limits.items

  def embed(items, item_time, key):
    if not num_items:
      return system.embed(
        params, memory, inputs, users, times, items, item_time, key
      )
    own, place = dedup.unique_items(items[:size], num_items)
    place = jnp.concatenate(
      [place, num_items + jnp.arange(len(items) - size, dtype=jnp.int32)]
    )
    users_found, found = system.embed(
      params,
      memory,
      inputs,
      users,
      times,
      jnp.concatenate([own, items[size:]]),
      item_time,
      key,
    )
    return users_found, jax.tree.map(
      lambda x: x[place], sharded_table.shard_then_replicate(found)
    )

  return embed, visit


@functools.partial(jax.jit, static_argnums=(0, 1, 6), donate_argnums=(3,))
def train_chunk(
  trainer: Trainer,
  batch_size: int,
  inputs: Inputs,
  state: TrainState,
  plan_rows: tuple[Array, Array, Array, Array],
  order: Array | None,
  dedup_limits: dedup.DedupLimits = dedup.DedupLimits(),
) -> tuple[TrainState, tuple[Array, Array]]:
  """A run of steps as one program; nothing returns to Python in between.

  Args:
    trainer: the trainer.
    batch_size: rows of a batch.
    inputs: on the device.
    state: its buffers are given away.
    plan_rows: start, size, part and ready of each batch.
    order, dedup_limits: as in `train_step`.

  Returns:
    The state, and of each batch the sum of its losses and its events.
  """
  step = functools.partial(
    train_step,
    trainer,
    batch_size,
    inputs,
    order=order,
    dedup_limits=dedup_limits,
  )
  state, sums = jax.lax.scan(step, state, plan_rows)
  return state, sharded_table.replicate(sums)


def start_epoch(trainer: Trainer, state: TrainState) -> TrainState:
  """Memory and pending batch as before the first event (SPEC 4)."""
  mask = jnp.zeros_like(state.pending.events.mask)
  events = state.pending.events.replace(mask=mask)
  return TrainState(
    step=state.step,
    params=state.params,
    opt_state=state.opt_state,
    memory=trainer.system.reset(state.memory),
    pending=state.pending.replace(events=events),
    key=state.key,
  )


def run_epoch(
  trainer: Trainer,
  state: TrainState,
  inputs: Inputs,
  plan: batching.BatchPlan,
  progress: Callable[[int, float], None],
  facet_texts: np.ndarray | None = None,
) -> tuple[TrainState, dict[str, Any]]:
  """Trains on every event of the plan once.

  Args:
    trainer: the trainer.
    state: its buffers are given away.
    inputs: on the device.
    plan: the training split's batches.
    progress: called after each chunk with its number of events and their
      mean loss.
    facet_texts: those that stay on the host (facets/resident.py).

  Returns:
    The state; `loss`, the mean over events, `seconds`, and `events_per_s`
    without the first chunk, which in a process's first epoch is compiled.

  Raises:
    InputError: if the loss is not finite.
  """
  with sharded_table.use_mesh(trainer.mesh):
    return _run_epoch(trainer, state, inputs, plan, progress, facet_texts)


def _run_epoch(trainer, state, inputs, plan, progress, facet_texts):
  state = start_epoch(trainer, state)
  order = feeds.epoch_order(plan, state.key, state.step)
  count = -(-len(plan.start) // trainer.config.chunk)
  length = -(-len(plan.start) // max(1, count))
  total, sizes, ends = 0.0, [], [time.perf_counter()]
  for chunk in batching.chunks(plan, length):
    of_chunk = (chunk.start, chunk.size, chunk.part, chunk.ready)
    state, (chunk_losses, chunk_sizes) = train_chunk(
      trainer,
      plan.batch_size,
      resident_texts.with_texts(inputs, facet_texts, chunk),
      state,
      of_chunk,
      order,
      plan.dedup_limits,
    )
    chunk_loss = float(np.sum(np.asarray(chunk_losses, np.float64)))
    if not np.isfinite(chunk_loss):
      raise InputError(
        f'config.train.learning_rate: {trainer.config.learning_rate} makes '
        f'the loss {chunk_loss} at step {int(state.step)}; '
        'allowed: a lower one'
      )
    total += chunk_loss
    sizes.append(int(np.sum(chunk_sizes)))
    ends.append(time.perf_counter())
    progress(sizes[-1], chunk_loss / sizes[-1])
  warm = 1 if count > 1 else 0
  return state, {
    'loss': total / sum(sizes),
    'seconds': ends[-1] - ends[0],
    'events_per_s': sum(sizes[warm:]) / (ends[-1] - ends[warm]),
  }


def step_flops(
  trainer: Trainer, plan: batching.BatchPlan, inputs: Inputs, state: TrainState
) -> float:
  """Floating-point operations of a step, as XLA counts them before fusion.

  A loop of the ordered update is counted for one round.
  """
  zero = np.int32(0)
  row = (zero, np.int32(plan.batch_size), zero, np.array(True))
  with sharded_table.use_mesh(trainer.mesh):
    lowered = jax.jit(train_step, static_argnums=(0, 1, 6)).lower(
      trainer,
      plan.batch_size,
      inputs,
      state,
      row,
      feeds.epoch_order(plan, state.key, state.step),
      plan.dedup_limits,
    )
  return float((lowered.cost_analysis() or {}).get('flops', 0.0))


def num_parameters(params: Params) -> int:
  """Number of learned values."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
