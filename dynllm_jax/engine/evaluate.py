"""Chronological replay: events are ranked, then applied to memory (SPEC 5)."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.engine import ranking as ranking_lib
from dynllm_jax.engine import resident_texts
from dynllm_jax.engine.batching import BatchPlan
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import pending_updates
from dynllm_jax.kernels import barriers
from dynllm_jax.objectives import dedup
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory


class ReplayState(NamedTuple):
  """What a replay carries from one batch to the next."""

  memory: SystemMemory
  pending: Pending  # scored, its update still to be applied


@functools.partial(
  jax.jit, static_argnames=('batch_size', 'num_visits'), donate_argnames='state'
)
def replay_chunk(
  bound: BoundSystem,
  ranking: Ranking | None,
  state: ReplayState,
  batches: PlannedBatch,
  chosen: Array,
  *,
  batch_size: int,
  num_visits: int = 0,
) -> tuple[ReplayState, Array, Array]:
  """Replays a chunk of batches as one program: each is ranked, then applied.

  Args:
    bound: the system.
    ranking: how to rank; None only applies updates.
    state: before the batches; its buffers are donated.
    batches: of the plan, columns [batches].
    chosen: bool[batches], which of them are ranked.
    batch_size: rows of a batch.
    num_visits: `visits` of the plan's `DedupLimits`.

  Returns:
    The state, f32[batches, batch] ranks, and whether all scores were finite.
  """

  def step(
    state: ReplayState, row: tuple[PlannedBatch, Array]
  ) -> tuple[ReplayState, tuple[Array, Array]]:
    planned, is_chosen = row
    batch = sharded_table.shard_first_axis(
      batching.slice_batch(bound.inputs, planned, batch_size)
    )

    unranked = jnp.zeros([batch_size]), jnp.array(True)
    if ranking is None:
      ranks, finite = unranked
    else:
      ranks, finite = jax.lax.cond(
        is_chosen,
        lambda: ranking_lib.rank_batch(
          bound, state.memory, ranking, batch, num_visits
        ),
        lambda: unranked,
      )

    user_vectors, item_vectors = embed_events(
      bound, state.memory, batch, num_visits
    )
    pending = sharded_table.replicate(
      pending_updates.add_pending(
        state.pending, batch, user_vectors, item_vectors, planned
      )
    )

    # All that reads the memory has done so before the update writes it.
    real = barriers.after(planned.size > 0, ranks)
    real = barriers.after(barriers.after(real, user_vectors), item_vectors)
    memory = bound.update(state.memory, pending_updates.due(pending, real))
    return ReplayState(memory, pending), (ranks, finite)

  state, (ranks, finite) = jax.lax.scan(step, state, (batches, chosen))
  return state, *sharded_table.replicate((ranks, finite.all()))


def embed_events(
  bound: BoundSystem,
  memory: SystemMemory,
  batch: EventBatch,
  num_visits: int = 0,
) -> tuple[Array, Array]:
  """What the update after a batch is made from.

  Args:
    bound: the system.
    memory: before the batch.
    batch: the events.
    num_visits: `visits` of the plan's `DedupLimits`.

  Returns:
    f32[batch, dim] vectors of the users, each at the event's time, and of the
    items, at the batch's first time (SPEC 3.9).
  """
  visits = dedup.unique_visits(batch, num_visits)
  users, times = sharded_table.shard_first_axis((visits.users, visits.times))
  visitors, items = bound.embed(
    memory, users, times, batch.items, batch.times[0]
  )
  users = dedup.expand_to_events(visitors, visits.of_event)
  return sharded_table.shard_then_replicate((users.vector, items.vector))


def replay(
  bound: BoundSystem,
  memory: SystemMemory,
  plan: BatchPlan,
  ranking: Ranking | None,
  progress: Callable[[int], None] | None = None,
  chosen: np.ndarray | None = None,
  facet_texts: np.ndarray | None = None,
) -> tuple[SystemMemory, np.ndarray]:
  """Plays a plan's events in order through the memory, ranking each.

  Args:
    bound: the system.
    memory: as before the plan's first event; it is not changed.
    plan: the batches.
    ranking: how to rank, or None to apply the updates alone.
    progress: called with the number of events of each finished chunk.
    chosen: bool[batches], whose events are ranked; None for all.
    facet_texts: f16[unique_texts, llm_dim], those that stay on the host
      (resident_texts.py); None where the device has all that is read.

  Returns:
    The memory after the last event; f64[events] ranks of the events that were
    ranked, in order.

  Raises:
    InputError: if a score is not finite.
  """
  state = start_replay(bound, memory, plan.capacity)

  # A power of two, so that splits of like size share one compilation.
  length = max(8, 1 << (len(plan.batches) // 16).bit_length())
  if chosen is None:
    chosen = np.ones(len(plan.batches), bool)
  chosen = np.pad(chosen, (0, -len(chosen) % length)).reshape(-1, length)

  ranks = []
  for chunk, is_chosen in zip(batching.chunks(plan, length), chosen):
    inputs = resident_texts.with_texts(bound.inputs, facet_texts, chunk)
    state, chunk_ranks, finite = replay_chunk(
      bound.replace(inputs=inputs),
      ranking,
      state,
      chunk.batches,
      is_chosen,
      batch_size=plan.batch_size,
      num_visits=plan.dedup_limits.visits,
    )
    starts, sizes = chunk.batches.start, chunk.batches.size
    if not finite:
      raise InputError(
        f'a score is not finite (events {starts[0]} to {starts.max()} of the '
        'log): the parameters have diverged; allowed: a lower '
        'config.train.learning_rate'
      )
    if ranking is not None:
      real = np.arange(plan.batch_size) < sizes[:, None]
      real &= is_chosen[:, None]
      ranks.append(np.asarray(chunk_ranks, np.float64)[real])
    if progress:
      progress(int(sizes.sum()))
  return state.memory, np.concatenate(ranks or [np.zeros(0)])


@jax.jit
def memory_for_replay(
  bound: BoundSystem, memory: SystemMemory, pending: Pending
) -> SystemMemory:
  """A copy of the memory from which a replay starts.

  What was pending is applied, and the node tables are computed (`propagate`).
  """
  memory = jax.tree.map(jnp.copy, memory)
  memory = bound.update(memory, pending_updates.due(pending, True))
  return bound.propagate(memory)


def start_replay(
  bound: BoundSystem, memory: SystemMemory, capacity: int
) -> ReplayState:
  """The state before a replay's first batch; nothing is pending.

  The carry of a scan has fixed shapes: an update of nothing brings the memory
  to the plan's capacity. Where training's was as large, that is the program
  that `memory_for_replay` has compiled already.
  """
  pending = _empty_pending(bound, memory, capacity)
  return ReplayState(memory_for_replay(bound, memory, pending), pending)


@functools.partial(jax.jit, static_argnames='capacity', keep_unused=True)
def _empty_pending(
  bound: BoundSystem, memory: SystemMemory, capacity: int
) -> Pending:
  """Compiled, so that it is placed as the pending batch that a step returns."""
  return sharded_table.replicate(
    pending_updates.empty_pending_for(bound, memory, capacity)
  )


def split_plans(
  system: System, log: EventLog, batch_size: int
) -> dict[str, BatchPlan]:
  """The batch plans by which a system is ranked.

  Args:
    system: decides whether a batch is a distinct time or `batch_size` events.
    log: the prepared log.
    batch_size: events in a batch at most.

  Returns:
    The plans of the splits 'train', 'validation' and 'test'.
  """
  ends = [0, log.train_end, log.validation_end, log.num_events]
  plans = {}
  for name, start, end in zip(('train', 'validation', 'test'), ends, ends[1:]):
    plans[name] = (
      batching.plan_by_time(log.times, start, end)
      if system.by_time
      else batching.plan_batches(log.times, start, end, batch_size)
    )
  if system.by_time:
    return plans

  # One limit for all, so that they share a compilation.
  counts = [
    batching.with_dedup_limits(plan, log).dedup_limits.visits
    for plan in plans.values()
  ]
  most = dedup.DedupLimits(visits=max(counts) if all(counts) else 0)
  return {name: p._replace(dedup_limits=most) for name, p in plans.items()}


def sample_batches(plan: BatchPlan, events: int) -> np.ndarray:
  """A fixed sample of a plan's batches.

  Whole batches are drawn, since most of a batch's cost is to embed the
  catalogue once.

  Args:
    plan: of a split.
    events: how many the sample has at least; 0 for all.

  Returns:
    bool[batches].
  """
  order = np.random.default_rng(0).permutation(len(plan.batches))
  sizes = plan.batches.size[order]
  before = np.cumsum(sizes) - sizes
  chosen = np.zeros(len(order), bool)
  chosen[order] = (before < events) if events else True
  return chosen
