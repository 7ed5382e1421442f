"""Logs whose last events of each user are held out, and a trial on one."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import progress
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.engine import train
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Params
from dynllm_jax.types import SECONDS_PER_DAY
from experiments import random_logs
from experiments import slices


def leave_one_out(log: EventLog) -> EventLog:
  """The log with the last event of each user as its test split.

  Args:
    log: the prepared log.

  Returns:
    The same events, those of training first, then one of each user for
    validation and for test. A user with fewer than three events is trained on
    alone. Times are a user's event numbers, in days; those of validation and
    test are later than all others.
  """
  order = np.argsort(log.users, kind='stable')
  counts = np.bincount(log.users, minlength=log.num_users + 1)
  first = np.cumsum(counts) - counts
  number = np.empty(log.num_events, np.int64)
  number[order] = np.arange(log.num_events) - first[log.users[order]]

  left = counts[log.users] - number  # 1 for the last event of a user
  enough = counts[log.users] >= 3
  last = counts.max()
  time = np.where(enough & (left <= 2), last + 2 - left, number)
  order = np.argsort(time, kind='stable')
  held_out = int(np.sum(enough & (left == 1)))
  return dataclasses.replace(
    log,
    users=log.users[order],
    items=log.items[order],
    times=time[order] * SECONDS_PER_DAY,
    train_end=log.num_events - 2 * held_out,
    validation_end=log.num_events - held_out,
    fingerprint=log.fingerprint + ' leave-one-out',
  )


class Trial:
  """A system that is trained and ranked on a log.

  Attributes:
    training: the system before its first step.

  Args:
    config: the whole configuration.
    log: of `leave_one_out`.

  Raises:
    InputError: if the system is not fed with sequences, or a field is wrong.
  """

  def __init__(self, config: ml_collections.ConfigDict, log: EventLog) -> None:
    self._config, self._log = config, log
    item_text, facets = random_logs.texts(log, 0)
    self.training = slices.build(config, log, item_text, facets)
    system = self.training.trainer.system
    if system.feed != 'sequences':
      raise InputError(
        f'--system: {config.model.name!r} is fed {system.feed!r}; allowed: '
        'systems that are fed sequences'
      )

  def rank(
    self, params: Params, split: str, filter_seen: bool
  ) -> dict[str, float]:
    """Metrics of `validation` or `test`."""
    log, trainer = self._log, self.training.trainer
    start, end = {
      'validation': (log.train_end, log.validation_end),
      'test': (log.validation_end, log.num_events),
    }[split]
    bound = BoundSystem(trainer.system, params, self.training.inputs)
    _, ranks = evaluate.replay(
      bound,
      (),
      batching.plan_batches(
        log.times, start, end, self._config.eval.batch_size
      ),
      ranking.Ranking(
        ranking.candidate_mask(log, 'all'),
        self._config.eval.block_size,
        filter_seen,
      ),
    )
    return metrics.summary(ranks, (5, 10, 20))

  def fit(self, patience: int) -> Params:
    """Trains until validation NDCG@10 is no longer better; its best epoch's."""
    trainer, inputs, plan, state = self.training
    best, best_value, since = state.params, -1.0, 0
    for epoch in range(1, self._config.train.num_epochs + 1):
      state, record = train.run_epoch(
        trainer, state, inputs, plan, lambda events, loss: None
      )
      value = self.rank(state.params, 'validation', True)['ndcg@10']
      progress.say(
        f'epoch {epoch}: loss {record["loss"]:.4f}, validation NDCG@10 '
        f'{value:.4f}, {record["seconds"]:.0f} s'
      )
      since += 1
      if value > best_value:
        best, best_value = jax.tree.map(jnp.copy, state.params), value
        since = 0
      if since >= patience:
        break
    return best
