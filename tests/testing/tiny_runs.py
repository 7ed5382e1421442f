"""A system about to be trained on a small random log, in one call."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import ranking
from dynllm_jax.engine import train
from dynllm_jax.engine.training_step import Trainer
from dynllm_jax.graph import training_graph
from dynllm_jax.parallel import device_mesh
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import Inputs
from dynllm_jax.types import System
from dynllm_jax.types import TrainState
from tests.testing import logs


class TinyRun(NamedTuple):
  """A system, what it is trained on, and how.

  Attributes:
    log: the events.
    inputs: what the system reads, on the device.
    plan: the batches of the training split.
    trainer: the system with its optimizer.
  """

  log: EventLog
  inputs: Inputs
  plan: batching.BatchPlan
  trainer: Trainer

  @property
  def system(self) -> System:
    return self.trainer.system

  def first_state(self) -> TrainState:
    """The state before the first step; its buffers are the caller's."""
    return train.init_state(self.trainer, 0, self.inputs, self.plan.capacity)

  def epoch(self, state: TrainState, facet_texts=None) -> tuple:
    """The state after an epoch, and the epoch's record."""
    return train.run_epoch(
      self.trainer,
      state,
      self.inputs,
      self.plan,
      lambda events, loss: None,
      facet_texts,
    )

  def rank_later_events(self, state: TrainState, facet_texts=None) -> tuple:
    """The memory after the log's end, and ranks of all after the training."""
    log, size = self.log, self.plan.batch_size
    bound = BoundSystem(self.system, state.params, self.inputs)
    memory = evaluate.memory_for_replay(bound, state.memory, state.pending)
    return evaluate.replay(
      bound,
      memory,
      batching.plan_batches(log.times, log.train_end, log.num_events, size),
      ranking.Ranking(ranking.candidate_mask(log, 'all'), 100),
      facet_texts=facet_texts,
    )


def make_system(config: ml_collections.ConfigDict) -> System:
  """The system that a whole configuration names."""
  return config_lib.system_module(config.model.name).build(config.model)


def small_log() -> EventLog:
  """150 events of 12 users and 15 items, many of them at equal times."""
  return logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=70
  )


def prepare(
  config: ml_collections.ConfigDict,
  log: EventLog | None = None,
  inputs: Inputs | None = None,
  batch: int = 16,
) -> TinyRun:
  """Everything that training needs, before the first step.

  Args:
    config: the whole configuration, such as `variants.tiny_config` makes.
    log: `small_log()` if it is None.
    inputs: of the log; random texts and facets if it is None.
    batch: events of a batch.

  Returns:
    The run; nothing is compiled yet.
  """
  system = make_system(config)
  log = log or small_log()
  if inputs is None:
    sold = config.train.negatives == 'sold'
    inputs = logs.random_inputs(log, padding=batch, sold=sold)
    if system.reads_train_graph:
      graph = jax.tree.map(jnp.asarray, training_graph.train_graph(log))
      inputs = inputs.replace(train_graph=graph)
  plan = feeds.training_plan(system, log, batch)
  mesh = device_mesh.make_mesh(config)
  trainer = train.make_trainer(system, config, mesh, len(plan.batches))
  return TinyRun(log, inputs, plan, trainer)
