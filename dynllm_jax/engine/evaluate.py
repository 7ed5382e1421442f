"""Chronological replay: events are ranked, then applied to memory (SPEC 5)."""

from collections.abc import Callable
from collections.abc import Iterator
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
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import NodeTables
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import ROOM_FOR_ALL
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory

_MOST_TABLE_BYTES = 1 << 30


class ReplayState(NamedTuple):
  """What a replay carries from one batch to the next."""

  memory: SystemMemory
  pending: Pending  # scored, its update still to be applied
  tables: NodeTables | None = None  # of the memory (SPEC 5.5)


@functools.partial(
  jax.jit,
  static_argnames=('batch_size', 'num_visits', 'own_limits'),
  donate_argnames='state',
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
  own_limits: OwnLimits = ROOM_FOR_ALL,
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
    own_limits: of the plan.

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

    now = bound.with_tables(state.tables)
    embedded = ranking_lib.embed_batch(now, state.memory, batch, num_visits)
    user_vectors, item_vectors = event_vectors(embedded)

    def pass_by() -> tuple[Array, Array]:
      return jnp.zeros([batch_size]), jnp.array(True)

    def rank() -> tuple[Array, Array]:
      assert ranking is not None
      return ranking_lib.rank_batch(now, state.memory, ranking, batch, embedded)

    ranks, finite = (
      pass_by() if ranking is None else jax.lax.cond(is_chosen, rank, pass_by)
    )
    pending = device_mesh.constrain(
      pending_updates.add_pending(
        state.pending, batch, user_vectors, item_vectors, planned
      )
    )

    # All that reads the memory has done so before the update writes it.
    real = barriers.after(planned.size > 0, ranks)
    real = barriers.after(barriers.after(real, user_vectors), item_vectors)
    due = pending_updates.due(pending, real, own_limits)
    memory = bound.update(state.memory, due)
    tables = state.tables
    if tables is not None:
      tables = now.tabulate(memory)
    return ReplayState(memory, pending, tables), (ranks, finite)

  state, (ranks, finite) = jax.lax.scan(step, state, (batches, chosen))
  return state, *sharded_table.replicate((ranks, finite.all()))


def event_vectors(embedded: ranking_lib.Embedded) -> tuple[Array, Array]:
  """What the update after a batch is made from.

  Returns:
    f32[batch, dim] vectors of the users, each at the event's time, and of the
    items, at the batch's first time (SPEC 3.9).
  """
  users = dedup.expand_to_events(embedded.users, embedded.visits.of_event)
  return sharded_table.shard_first_axis((users.vector, embedded.items.vector))


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
  state = start_replay(bound, memory, plan.capacity, plan.own_limits)
  bound = with_texts_mapped(bound)
  if ranking is not None:
    state = with_tables(bound, state)

  # A power of two, so that splits of like size share one compilation.
  length = max(8, 1 << (len(plan.batches) // 16).bit_length())
  if chosen is None:
    chosen = np.ones(len(plan.batches), bool)
  chosen = np.pad(chosen, (0, -len(chosen) % length)).reshape(-1, length)

  def begin_chunks() -> Iterator[tuple[PlannedBatch, Array, Array, Array]]:
    nonlocal state
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
        own_limits=plan.own_limits,
      )
      yield chunk.batches, is_chosen, chunk_ranks, finite

  ranks = []
  for batches, is_chosen, chunk_ranks, finite in batching.one_behind(
    begin_chunks()
  ):
    starts, sizes = batches.start, batches.size
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


def with_texts_mapped(bound: BoundSystem) -> BoundSystem:
  """The system with the texts of all items mapped, for a replay."""
  if bound.system.map_texts is None:
    return bound
  inputs = bound.inputs.replace(mapped_texts=_map_texts(bound))
  return bound.replace(inputs=inputs)


@jax.jit
def _map_texts(bound: BoundSystem) -> Array:
  assert bound.system.map_texts is not None
  mapped = bound.system.map_texts(bound.params, bound.inputs)
  inputs = bound.inputs.replace(mapped_texts=mapped)
  return device_mesh.constrain(inputs).mapped_texts


def with_tables(bound: BoundSystem, state: ReplayState) -> ReplayState:
  """The state with tables of its nodes, where ranking gains by them (SPEC 5.5).

  Not where devices share the rows of tables, which would cost more to send than
  to compute, and not where tables would take more than a GiB.

  Args:
    bound: the system, the texts of its items mapped.
    state: before the first batch.
  """
  if bound.system.tabulate is None or sharded_table.num_shards() > 1:
    return state
  shapes = jax.tree.leaves(jax.eval_shape(_tabulate, bound, state.memory))
  if sum(x.size * x.dtype.itemsize for x in shapes) > _MOST_TABLE_BYTES:
    return state
  return state._replace(tables=_tabulate(bound, state.memory))


@jax.jit
def _tabulate(bound: BoundSystem, memory: SystemMemory) -> NodeTables:
  return device_mesh.constrain(bound.tabulate(memory))


def memory_for_replay(
  bound: BoundSystem,
  memory: SystemMemory,
  pending: Pending,
  own_limits: OwnLimits = ROOM_FOR_ALL,
) -> SystemMemory:
  """A copy of the memory from which a replay starts.

  What was pending is applied, and the node tables are computed (`propagate`).

  Args:
    bound: the system.
    memory: it is not changed.
    pending: events that wait for their update.
    own_limits: how much of them falls to one device.
  """
  return _memory_for_replay(bound, memory, pending, own_limits)


# Every caller names the limits: a default would be compiled as another program.
@functools.partial(jax.jit, static_argnums=3)
def _memory_for_replay(
  bound: BoundSystem,
  memory: SystemMemory,
  pending: Pending,
  own_limits: OwnLimits,
) -> SystemMemory:
  memory = jax.tree.map(jnp.copy, memory)
  memory = bound.update(memory, pending_updates.due(pending, True, own_limits))
  return bound.propagate(memory)


def start_replay(
  bound: BoundSystem,
  memory: SystemMemory,
  capacity: int,
  own_limits: OwnLimits = ROOM_FOR_ALL,
) -> ReplayState:
  """The state before a replay's first batch; nothing is pending.

  The carry of a scan has fixed shapes: an update of nothing brings the memory
  to the plan's capacity. Where training's was as large, that is the program
  that `memory_for_replay` has compiled already.
  """
  pending = _empty_pending(bound, memory, capacity)
  memory = memory_for_replay(bound, memory, pending, own_limits)
  return ReplayState(memory, pending)


@functools.partial(jax.jit, static_argnames='capacity', keep_unused=True)
def _empty_pending(
  bound: BoundSystem, memory: SystemMemory, capacity: int
) -> Pending:
  """Compiled, so that it is placed as the pending batch that a step returns."""
  return device_mesh.constrain(
    pending_updates.empty_pending_for(bound, memory, capacity)
  )


def split_plans(
  system: System,
  log: EventLog,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, BatchPlan]:
  """The batch plans by which a system is ranked.

  Args:
    system: decides whether a batch is a distinct time or `batch_size` events.
    log: the prepared log.
    batch_size: events in a batch at most.
    mesh: the devices; None for one.

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
  own = [
    batching.with_own_limits(plan, log, mesh).own_limits
    for plan in plans.values()
  ]
  own_limits = OwnLimits(*map(max, zip(*own)))
  return {
    name: plan._replace(dedup_limits=most, own_limits=own_limits)
    for name, plan in plans.items()
  }


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
