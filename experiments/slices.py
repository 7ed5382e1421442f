"""Systems in training, a slice at a time, so that slices can be timed.

A slice is a chunk of an epoch: what `train.run_epoch` runs as one program,
between two updates of its progress bar. The first slice compiles the program
and warms up.
"""

import functools
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import batching
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.engine.training_step import Trainer
from dynllm_jax.graph import inputs as inputs_lib
from dynllm_jax.parallel import device_mesh
from dynllm_jax.runs import prepared
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import Inputs
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import TrainState


class Training(NamedTuple):
  """A system before its first training step."""

  trainer: Trainer  # what is compiled
  inputs: Inputs  # on the device
  plan: batching.BatchPlan  # of the training split
  state: TrainState


class Slices:
  """A system in training, a slice at a time; after the last, a new epoch.

  Attributes:
    trainer: what is compiled.
    inputs: on the device.
    plan: all batches.
    data: what every step reads.
    state: after the last slice that was trained on.
    compile_s: seconds of tracing and compilation, 0 until then.

  Args:
    training: the system; the buffers of its state are given away.
    slice_events: events of a slice at most; a slice has at least a batch.
    spread: if not 0, an epoch has only so many slices, at even distances, so
      that few of them reach from the beginning of a long log to its end.
  """

  def __init__(self, training: Training, slice_events: int, spread: int = 0):
    self.trainer, self.inputs, plan, state = training
    self.plan = plan
    self.data = feeds.EpochData(
      self.inputs,
      None,
      plan.batch_size,
      plan.dedup_limits,
      plan.own_limits,
    )
    self.state = train.start_epoch(self.trainer, state)

    length = min(len(plan.batches), max(1, slice_events // plan.batch_size))
    chunks = batching.chunks(plan, length)
    # The last chunk may be padded: it costs as much and has fewer events.
    chunks = chunks[:-1] if len(chunks) > 1 else chunks
    if spread:
      places = np.linspace(0, len(chunks) - 1, spread).astype(int)
      chunks = [chunks[place] for place in np.unique(places)]
    self._chunks = chunks
    self._next = 0
    self.compile_s = 0.0

  @functools.cached_property
  def program(self) -> jax.stages.Compiled:
    """What trains on a slice, compiled when it is first asked for."""
    began = time.perf_counter()
    program = train.train_chunk.lower(
      self.trainer,
      self.data,
      self.state,
      self.batches(),
    ).compile()
    self.compile_s = time.perf_counter() - began
    return program

  def batches(self) -> PlannedBatch:
    """The batches of the next slice, columns [batches]."""
    return self._chunks[self._next % len(self._chunks)].batches

  @property
  def num_slices(self) -> int:
    """Slices of an epoch."""
    return len(self._chunks)

  def bytes_per_step(self) -> float:
    """Bytes that a step's operations read and write, as XLA counts them.

    XLA counts the body of a loop once, whatever the number of rounds. The body
    of the chunk's loop is a step; of the ordered update one block of rows
    counts.
    """
    return float(self.program.cost_analysis()['bytes accessed'])

  def peak_bytes(self) -> int:
    """Device memory at the program's peak: arguments, results, temporaries."""
    found = self.program.memory_analysis()
    return (
      found.argument_size_in_bytes
      + found.output_size_in_bytes
      - found.alias_size_in_bytes
      + found.temp_size_in_bytes
    )

  def step(self) -> tuple[int, float]:
    """Trains on the next slice; returns its events and its seconds."""
    if self._next == len(self._chunks):
      self._next = 0
      self.state = train.start_epoch(self.trainer, self.state)
    batches, program = self.batches(), self.program

    jax.block_until_ready(self.state)
    began = time.perf_counter()
    self.state, (_, sizes) = jax.block_until_ready(
      program(self.data, self.state, batches)
    )
    seconds = time.perf_counter() - began
    self._next += 1
    return int(np.sum(sizes)), seconds


def of_config(
  config: ml_collections.ConfigDict, slice_events: int
) -> tuple[Slices, prepared.PreparedRun]:
  """A configuration's system on the configuration's log.

  Args:
    config: the whole configuration.
    slice_events: events of a slice at most.

  Returns:
    The slices, and the prepared run that they are of.
  """
  run = prepared.prepare(config)
  # Compilation is timed, so no program may come from the disk.
  jax.config.update('jax_compilation_cache_dir', None)
  training = Training(
    run.trainer, run.inputs, run.train_plan, prepared.initial_state(run)
  )
  return Slices(training, slice_events), run


def build(
  config: ml_collections.ConfigDict,
  log: EventLog,
  item_text: np.ndarray,
  facets: FacetBank,
) -> Training:
  """A configuration's system on a log that is given, not read from a source.

  Args:
    config: the whole configuration; `config.data` and `config.facets` are not
      read.
    log: the log.
    item_text: f16[items + 1, llm_dim].
    facets: of the log's users.

  Returns:
    The system, as `Slices` takes it.
  """
  mesh = device_mesh.make_mesh(config)
  system = config_lib.system_module(config.model.name).build(config.model)
  plan = feeds.training_plan(system, log, config.train.batch_size, mesh)
  inputs = device_mesh.put_on_mesh(
    mesh,
    inputs_lib.build_inputs(
      log,
      item_text,
      facets,
      max(
        config.train.batch_size,
        config.eval.batch_size,
        batching.MAX_ROWS_BY_TIME,
      ),
      train_graph=system.reads_train_graph,
      sold=config.train.negatives == 'sold',
      whitening=config.model.get('text_whitening', False),
    ),
  )
  trainer = train.make_trainer(system, config, mesh, len(plan.batches))
  state = device_mesh.put_on_mesh(
    mesh, train.init_state(trainer, config.seed, inputs, plan.capacity)
  )
  return Training(trainer, inputs, plan, state)


def crowding(slices: Slices) -> tuple[int, float]:
  """How often a node occurs in a batch.

  Args:
    slices: of a chronological plan.

  Returns:
    The events of the busiest node of any batch; and the rounds of the ordered
    update, which are the most distinct times of a node, as a mean over
    batches.
  """
  users, items, times = (
    np.asarray(x)
    for x in (slices.inputs.users, slices.inputs.items, slices.inputs.times)
  )

  most, rounds = 0, []
  for planned in slices.plan.batches:
    at = slice(planned.start, planned.start + planned.size)
    deepest = 0
    for nodes in (users[at], items[at]):
      most = max(most, int(np.bincount(nodes).max()))
      pairs = np.unique(np.stack([nodes, times[at]]), axis=1)
      deepest = max(deepest, int(np.bincount(pairs[0]).max()))
    rounds.append(deepest)
  return most, float(np.mean(rounds))
