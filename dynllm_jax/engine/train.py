"""Training: trainer, first state, and epochs as compiled scans (SPEC 4)."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax import compiling
from dynllm_jax.engine import batching
from dynllm_jax.engine import feeds
from dynllm_jax.engine import optimizers
from dynllm_jax.engine import precision
from dynllm_jax.engine import resident_texts
from dynllm_jax.engine.training_step import train_step
from dynllm_jax.engine.training_step import Trainer
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import losses
from dynllm_jax.objectives import negatives
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TrainState

GENERATOR = 'threefry2x32'  # of random numbers; checkpoints hold its state
# Where `num_epochs` is 0, a schedule as short as ranks later events best, but
# of at least so many steps, as long as it does not get too long.
_STEPS = 140
_FEWEST_AND_MOST_EPOCHS = (3, 30)
# Of the fields of `config.train`.
RULES = (
  checks.one_of('loss', losses.LOSSES),
  checks.at_least('num_negatives', 1),
  checks.at_least('num_epochs', 0),
  checks.above_zero('learning_rate'),
  checks.fraction('final_learning_rate'),
  checks.at_least('warmup_steps', 0),
  checks.above_zero('max_gradient_norm'),
  checks.above_zero('max_time_gradient_norm'),
  checks.above_zero('margin'),
  checks.fraction('softmax_power'),
  checks.at_least('patience', 1),
  checks.at_least('chunk', 1),
  checks.at_least('regularization', 0),
  precision.RULE,
)


def check(train_config: ml_collections.ConfigDict) -> None:
  """Checks the fields of `config.train`.

  Raises:
    InputError: naming those whose value is not allowed.
  """
  drawn = checks.one_of('negatives', negatives.NEGATIVES)
  if train_config.loss != 'softmax' and train_config.negatives == 'batch':
    drawn = drawn._replace(
      allowed="uniform, sold, popularity; batch with the loss 'softmax' alone",
      holds=lambda value: value != 'batch',
    )
  checks.check('config.train', train_config, [drawn, *RULES])


def num_epochs(
  train_config: ml_collections.ConfigDict, steps_per_epoch: int
) -> int:
  """Epochs that training has at most (SPEC 4).

  Args:
    train_config: `config.train`.
    steps_per_epoch: batches of the training plan.
  """
  if train_config.num_epochs:
    return int(train_config.num_epochs)
  fewest, most = _FEWEST_AND_MOST_EPOCHS
  enough = -(-_STEPS // max(steps_per_epoch, 1))
  return min(max(fewest, enough), most)


def make_trainer(
  system: System,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  steps_per_epoch: int,
) -> Trainer:
  """Checks `config.train` and builds the optimizer.

  Args:
    system: what is trained.
    config: the whole configuration.
    mesh: the devices.
    steps_per_epoch: batches of the training plan.

  Returns:
    The trainer.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  train = config.train

  check(train)

  return Trainer(
    system=system,
    clip=optimizers.clipping(train),
    optimizer=optimizers.adam(
      train, num_epochs(train, steps_per_epoch) * steps_per_epoch
    ),
    config=ml_collections.FrozenConfigDict(train),
    mesh=mesh,
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
  key = jax.random.key(seed, impl=GENERATOR)
  init_key, run_key = jax.random.split(key)
  params, memory = jax.jit(trainer.system.init, static_argnums=2)(
    init_key, inputs, capacity
  )
  bound = BoundSystem(trainer.system, params, inputs)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=trainer.optimizer.init(params),
    memory=memory,
    pending=pending_updates.empty_pending_for(bound, memory, capacity),
    key=run_key,
  )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def train_chunk(
  trainer: Trainer,
  data: feeds.EpochData,
  state: TrainState,
  batches: PlannedBatch,
) -> tuple[TrainState, tuple[Array, Array]]:
  """A chunk of steps as one program; nothing returns to Python in between.

  Args:
    trainer: the trainer.
    data: of the epoch.
    state: its buffers are donated.
    batches: of the plan, columns [batches].

  Returns:
    The state, and of each batch the sum of its losses and its events.
  """
  step = functools.partial(train_step, trainer, data)
  state, sums = jax.lax.scan(step, state, batches)
  return state, sharded_table.replicate(sums)


def start_epoch(trainer: Trainer, state: TrainState) -> TrainState:
  """Memory and pending batch as before the first event (SPEC 4)."""
  memory, pending = _before_first_event(
    trainer.system, state.memory, state.pending
  )
  return state.replace(memory=memory, pending=pending)


@functools.partial(jax.jit, static_argnums=0, keep_unused=True)
def _before_first_event(
  system: System, memory: SystemMemory, pending: Pending
) -> tuple[SystemMemory, Pending]:
  """Compiled, so that what it makes is placed as what a step returns.

  Otherwise an epoch's second chunk would be compiled again. An argument that is
  not kept has no say in where a result is placed.
  """
  mask = jnp.zeros_like(pending.events.mask)
  events = pending.events.replace(mask=mask)
  return device_mesh.constrain(
    (system.reset(memory), pending.replace(events=events))
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
    state: its buffers are donated.
    inputs: on the device.
    plan: the training split's batches.
    progress: called for each chunk, once the next has begun, with its number
      of events and their mean loss.
    facet_texts: f16[unique_texts, llm_dim], those that stay on the host
      (resident_texts.py); None where the device has all that is read.

  Returns:
    The state; `loss`, the mean over events, `seconds` and `events_per_s`, in
    which what was compiled is left out, and `compile_seconds`.

  Raises:
    InputError: if the loss is not finite.
  """
  # Chunks of equal length, as long as wanted at most.
  count = -(-len(plan.batches) // trainer.config.chunk)
  length = -(-len(plan.batches) // max(1, count))
  total, sizes = 0.0, []
  began, compiled = time.perf_counter(), compiling.seconds()
  with sharded_table.use_mesh(trainer.mesh):
    state = start_epoch(trainer, state)
    data = feeds.epoch_data(plan, inputs, state.key, state.step)
    step = int(state.step)

    def begin_chunks() -> Iterator[tuple[PlannedBatch, tuple[Array, Array]]]:
      nonlocal state
      for chunk in batching.chunks(plan, length):
        chunk_inputs = resident_texts.with_texts(inputs, facet_texts, chunk)
        state, sums = train_chunk(
          trainer, data.replace(inputs=chunk_inputs), state, chunk.batches
        )
        yield chunk.batches, sums

    for batches, sums in batching.one_behind(begin_chunks()):
      chunk_losses, chunk_sizes = map(np.asarray, sums)
      step += int(np.count_nonzero(batches.size))
      chunk_loss = float(np.sum(chunk_losses, dtype=np.float64))
      if not np.isfinite(chunk_loss):
        raise InputError(
          f'config.train.learning_rate: {trainer.config.learning_rate} makes '
          f'the loss {chunk_loss} at step {step}; allowed: a lower one'
        )
      total += chunk_loss
      sizes.append(int(np.sum(chunk_sizes)))
      progress(sizes[-1], chunk_loss / sizes[-1])

  compiled = compiling.seconds() - compiled
  seconds = max(time.perf_counter() - began - compiled, 1e-9)
  return state, {
    'loss': total / sum(sizes),
    'seconds': seconds,
    'compile_seconds': compiled,
    'events_per_s': sum(sizes) / seconds,
  }


def step_flops(
  trainer: Trainer, plan: batching.BatchPlan, inputs: Inputs, state: TrainState
) -> float:
  """Floating-point operations of a step, as XLA counts them before fusion.

  A loop of the ordered update is counted for one round.
  """
  batch = PlannedBatch(
    start=np.zeros([], np.int32),
    size=np.array(plan.batch_size, np.int32),
    part=np.zeros([], np.int32),
    ready=np.array(True),
  )
  with sharded_table.use_mesh(trainer.mesh):
    data = feeds.epoch_data(plan, inputs, state.key, state.step)
    lowered = jax.jit(train_step, static_argnums=0).lower(
      trainer, data, state, batch
    )
  return float((lowered.cost_analysis() or {}).get('flops', 0.0))


def num_parameters(params: Params) -> int:
  """Number of learned values."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
