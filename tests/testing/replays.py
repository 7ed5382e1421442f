"""Scores of a whole replay, and logs whose future was changed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.graph import pending_updates
from dynllm_jax.objectives import scoring
from dynllm_jax.types import BoundSystem
from tests.testing import logs

BATCH = 16


def all_scores(system, params, memory, inputs, log):
  """f32[events, items] scores of a whole replay from the first event."""
  plan = (
    batching.plan_by_time(log.times, 0, log.num_events)
    if system.by_time
    else batching.plan_batches(log.times, 0, log.num_events, BATCH)
  )
  bound = BoundSystem(system, params, inputs)
  pending = pending_updates.empty_pending_for(bound, memory, plan.capacity)
  memory = system.reset(memory)
  memory = evaluate.memory_for_replay(bound, memory, pending)
  state = evaluate.with_tables(bound, evaluate.ReplayState(memory, pending))
  rows = []
  for planned in plan.batches:
    scores, state = score_step(bound, state, planned, plan.batch_size)
    rows.append(np.asarray(scores)[: planned.size])
  return np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=3)
def score_step(bound, state, planned, batch_size):
  """Scores the whole catalogue for a batch, then applies its updates."""
  batch = batching.slice_batch(bound.inputs, planned, batch_size)
  num_items = len(bound.inputs.item_text) - 1
  bound = bound.with_tables(state.tables)
  users, items = bound.embed(
    state.memory,
    batch.users,
    batch.times,
    jnp.arange(1, num_items + 1),
    batch.times[0],
  )
  own = items.vector[jnp.maximum(batch.items - 1, 0)]
  pending = pending_updates.add_pending(
    state.pending, batch, users.vector, own, planned
  )
  due = pending_updates.due(pending, planned.size > 0)
  memory = bound.update(state.memory, due)
  tables = None if state.tables is None else bound.tabulate(memory)
  state = evaluate.ReplayState(memory, pending, tables)
  return scoring.score(users, items, num_items), state


def changed_future(log, cut, how):
  """The log with everything from event `cut` on changed, and nothing before.

  'items' changes every item and leaves users and times, so that each event
  still has its row of scores. What was training stays training, as far as the
  cut leaves it.
  """
  rng = np.random.default_rng(9)
  users, items, times = log.users.copy(), log.items.copy(), log.times.copy()
  if how == 'changed':
    users[cut:] = rng.integers(1, log.num_users + 1, len(users) - cut)
    items[cut:] = rng.integers(1, log.num_items + 1, len(items) - cut)
    times[cut:] += 977
  elif how == 'items':
    items[cut:] = (
      1
      + (items[cut:] + rng.integers(0, log.num_items - 1, len(items) - cut))
      % log.num_items
    )
  elif how == 'permuted':
    order = rng.permutation(len(users) - cut)
    users[cut:], items[cut:] = users[cut:][order], items[cut:][order]
  else:
    users, items, times = users[:cut], items[:cut], times[:cut]
  other = logs.make_log(users, items, times, log.num_users, log.num_items)
  return dataclasses.replace(other, train_end=min(log.train_end, cut))
