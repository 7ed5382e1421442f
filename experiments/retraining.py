"""Systems that learn nothing after training, trained again now and then.

A third of the test events of a shop's log are of items that training has not
seen. A system with a memory meets them as they come; a static one, as the paper
and we compare it, has parameters that ended with the training split. A shop
would train it again every so often, so this row stands beside the frozen one:
validation and test are cut into parts, and before each part the system goes on
training with all that came before it.
"""

from collections.abc import Iterator
import dataclasses
from typing import NamedTuple

import ml_collections
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.engine import train
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Params
from experiments import random_logs
from experiments import slices


class Part(NamedTuple):
  """A part of a split, positions in the log; both ends lie between times."""

  split: str
  start: int
  end: int


def parts_of(log: EventLog, num_parts: int) -> Iterator[Part]:
  """Cuts validation, then test, into parts of about as many events.

  Args:
    log: the prepared log.
    num_parts: of each split, 1 or more; fewer where times are too few.
  """
  for split, start, end in (
    ('validation', log.train_end, log.validation_end),
    ('test', log.validation_end, log.num_events),
  ):
    inner = np.linspace(start, end, num_parts + 1).astype(int)[1:-1]
    # A cut inside a group of equal times moves back to the group's start.
    inner = np.searchsorted(log.times, log.times[inner])
    bounds = np.unique([start, *inner, end])
    for low, high in zip(bounds, bounds[1:]):
      yield Part(split, int(low), int(high))


def rank_in_parts(
  config: ml_collections.ConfigDict,
  log: EventLog,
  num_parts: int,
  more_epochs: int,
) -> dict[str, dict[str, float]]:
  """Metrics of validation and test of a system that is trained again.

  Args:
    config: the whole configuration, of a system that reads no texts; the first
      training has `train.num_epochs`.
    log: the prepared log.
    num_parts: of each split.
    more_epochs: of each later training, which goes on from the parameters that
      there are, with a new optimizer; tables that are counted in training are
      counted again. With 0 all stays as the training split has left it, as in
      every other table.

  Returns:
    Metrics of `validation` and `test`.

  Raises:
    InputError: if the system has a memory that training fills, or a field has
      a value that is not allowed.
  """
  how = ranking.make_ranking(config, log)
  ranks: dict[str, list[np.ndarray]] = {'validation': [], 'test': []}
  params, epochs = None, config.train.num_epochs
  for part in parts_of(log, num_parts):
    known = log
    if more_epochs:
      known = dataclasses.replace(log, train_end=part.start)
    bound, memory = _trained(config, known, epochs, params)
    params, epochs = bound.params, more_epochs

    plan_of = (
      batching.plan_by_time
      if bound.system.by_time
      else lambda times, start, end: batching.plan_batches(
        times, start, end, config.eval.batch_size
      )
    )
    if bound.system.feed == 'none':
      earlier = plan_of(log.times, 0, part.start)
      memory, _ = evaluate.replay(bound, memory, earlier, None)
    plan = plan_of(log.times, part.start, part.end)
    ranks[part.split].append(evaluate.replay(bound, memory, plan, how)[1])
  return {
    split: metrics.summary(np.concatenate(found), config.eval.ks)
    for split, found in ranks.items()
  }


def _trained(
  config: ml_collections.ConfigDict,
  log: EventLog,
  epochs: int,
  params: Params | None,
) -> tuple[BoundSystem, Params]:
  """The system after some epochs on the training split, and its memory."""
  config = config.copy_and_resolve_references()
  config.train.num_epochs = max(1, epochs)
  trainer, inputs, plan, state = slices.build(
    config, log, *random_logs.texts(log, 0)
  )
  system = trainer.system
  if system.feed == 'stream':
    raise InputError(
      f'config.model.name: {config.model.name!r} has a memory that training '
      'fills; allowed: systems that are static, or fed sequences, or count'
    )
  if params is not None:
    state = state.replace(params=params)
  for _ in range(epochs if system.feed != 'none' else 0):
    state, _ = train.run_epoch(
      trainer, state, inputs, plan, lambda events, loss: None
    )
  return BoundSystem(system, state.params, inputs), state.memory
