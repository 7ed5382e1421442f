"""Chronological replay and full-catalogue ranking (SPEC 5)."""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.engine import batching
from dynllm_jax.engine import resident_texts
from dynllm_jax.graph import pending_updates
from dynllm_jax.graph import temporal
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System


class Ranking(NamedTuple):
  """How candidates are ranked; hashable, fixed at compilation."""

  block_size: int  # items scored at once
  seen_depth: int  # events of a user's past that are filtered, 0 for none


def rank_batch(
  system: System,
  ranking: Ranking,
  params: Params,
  memory: Any,
  inputs: Inputs,
  batch: EventBatch,
  candidates: Array,
  num_visits: int = 0,
) -> tuple[Array, Array]:
  """Ranks each event's item among all candidates.

  `rank = 1 + #{score > positive} + #{score == positive, other item} / 2`. Every
  candidate is embedded at the batch's first time; a score and its positive
  come from the same product, so that a tie is a tie. Where the catalogue needs
  several blocks it is scored twice: once for the positives, once to compare.

  Args:
    system: whose embeddings.
    ranking: how.
    params, memory, inputs: of the system.
    batch: the events.
    candidates: bool[items + 1], who takes part.
    num_visits: of the plan's `DedupLimits`.

  Returns:
    f32[batch] ranks, and bool[], whether every score was finite.
  """
  num_items = inputs.num_items
  block = sharded_table.round_up_to_devices(
    min(ranking.block_size * sharded_table.num_replicas(), num_items)
  )
  num_blocks = -(-num_items // block)
  row = jnp.arange(len(batch.mask))
  visitors, visit_times, visit = dedup.unique_visits(batch, num_visits)

  def scores_of(index):
    ids = sharded_table.shard_first_axis(
      1 + index * block + jnp.arange(block, dtype=jnp.int32)
    )
    users, items = system.embed(
      params,
      memory,
      inputs,
      *sharded_table.shard_first_axis((visitors, visit_times)),
      jnp.minimum(ids, num_items),
      batch.times[0],
      None,
    )
    # Each device scores its part of the catalogue for every user.
    users = sharded_table.shard_then_replicate(users)
    scores = sharded_table.shard_last_axis(scoring.score(users, items))
    return ids, scores if visit is None else scores[visit]

  def positives_of(ids, scores):
    column = batch.items - ids[0]
    inside = (column >= 0) & (column < block)
    found = scores[row, jnp.clip(column, 0, block - 1)]
    return jnp.where(inside, found, 0.0)

  def compare(ids, scores, positive):
    rival = (ids <= num_items) & candidates[jnp.minimum(ids, num_items)]
    rival = rival & (ids != batch.items[:, None])
    if ranking.seen_depth:
      rival &= ~_seen(inputs, batch, ids, ranking.seen_depth)
    above = jnp.sum(rival & (scores > positive[:, None]), axis=1)
    level = jnp.sum(rival & (scores == positive[:, None]), axis=1)
    finite = jnp.isfinite(scores) | ~batch.mask[:, None]
    return above + level / 2, finite.all()

  if num_blocks == 1:
    ids, scores = scores_of(0)
    beaten, finite = compare(ids, scores, positives_of(ids, scores))
    return 1 + beaten, finite

  def look(carry, turn):
    positive, beaten, finite = carry
    scored = scores_of(turn % num_blocks)

    def count():
      more, all_finite = compare(*scored, positive)
      return positive, beaten + more, finite & all_finite

    return jax.lax.cond(
      turn < num_blocks,
      lambda: (positive + positives_of(*scored), beaten, finite),
      count,
    ), None

  # One loop for both: compiled twice, a score might round in two ways.
  zeros = jnp.zeros([len(row)])
  (_, beaten, finite), _ = jax.lax.scan(
    look,
    (zeros, zeros, jnp.array(True)),
    jnp.arange(2 * num_blocks, dtype=jnp.int32),
  )
  return 1 + beaten, finite


def _seen(inputs, batch, ids, depth):
  """bool[batch, block]: items that a user took before, strictly earlier."""
  past = temporal.neighborhood(
    inputs.user_graph, batch.users, batch.times, depth
  )
  column = jnp.where(past.mask, past.nodes - ids[0], -1)
  column = jnp.where((column >= 0) & (column < len(ids)), column, len(ids))
  seen = jnp.zeros([len(batch.mask), len(ids)], bool)
  row = jnp.arange(len(batch.mask))[:, None]
  return seen.at[row, column].set(True, mode='drop')


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 9), donate_argnums=(4, 5))
def replay_chunk(
  system,
  ranking,
  batch_size,
  params,
  memory,
  pending,
  inputs,
  candidates,
  rows,
  num_visits=0,
):
  """A run of batches as one program, ranked and then applied.

  Args:
    system, ranking: fixed at compilation; `ranking` None only applies updates.
    batch_size: rows of a batch.
    params, inputs: of the system.
    memory, pending: their buffers are given away.
    candidates: bool[items + 1].
    rows: start, size, part, ready and chosen of each batch; what is not chosen
      is not ranked.
    num_visits: of the plan's `DedupLimits`.

  Returns:
    Memory, pending, f32[batches, batch] ranks, and whether all scores were
    finite.
  """

  def step(carry, row):
    memory, pending = carry
    start, size, part, ready, chosen = row
    batch = sharded_table.shard_first_axis(
      batching.slice_batch(inputs, start, size, batch_size)
    )
    unranked = jnp.zeros([batch_size]), jnp.array(True)
    if ranking is None:
      ranks, finite = unranked
    else:
      ranks, finite = jax.lax.cond(
        chosen,
        lambda: rank_batch(
          system, ranking, params, memory, inputs, batch, candidates, num_visits
        ),
        lambda: unranked,
      )
    users, times, visit = dedup.unique_visits(batch, num_visits)
    users, items = system.embed(
      params,
      memory,
      inputs,
      *sharded_table.shard_first_axis((users, times)),
      batch.items,
      batch.times[0],
      None,
    )
    users = dedup.expand_to_events(users, visit)
    pending = sharded_table.replicate(
      pending_updates.add_pending(
        pending,
        batch,
        *sharded_table.shard_then_replicate((users.vector, items.vector)),
        part,
        ready,
      )
    )
    # An update waits for the ranks: XLA writes a large table in place only
    # where the data say that it has been read.
    real = (size > 0) & (ranks.min() >= 0)
    memory = system.update(
      params, memory, inputs, pending_updates.due(pending, real)
    )
    return (memory, pending), (ranks, finite)

  (memory, pending), (ranks, finite) = jax.lax.scan(
    step, (memory, pending), rows
  )
  return memory, pending, *sharded_table.replicate((ranks, finite.all()))


def replay(
  system: System,
  params: Params,
  memory: Any,
  inputs: Inputs,
  plan: batching.BatchPlan,
  ranking: Ranking | None,
  candidates: Array,
  progress=None,
  chosen: np.ndarray | None = None,
  facet_texts: np.ndarray | None = None,
) -> tuple[Any, np.ndarray]:
  """Plays a plan's events in order through the memory, ranking each.

  Args:
    system, params, inputs: the system.
    memory: as before the plan's first event; it is left as it is.
    plan: the batches.
    ranking: how to rank, or None to apply the updates alone.
    candidates: bool[items + 1].
    progress: called with the number of events of each finished chunk.
    chosen: bool[batches], whose events are ranked; None for all.
    facet_texts: those that stay on the host (facets/resident.py).

  Returns:
    The memory after the last event; f64[events] ranks of the events that were
    ranked, in order.

  Raises:
    InputError: if a score is not finite.
  """
  pending = pending_updates.empty_pending_for(
    system, params, memory, inputs, plan.batch_size * plan.num_parts
  )
  # The carry of a scan has fixed shapes: an update of nothing brings the
  # memory to this plan's capacity.
  memory = memory_for_replay(system, params, memory, inputs, pending)
  ranks = []
  # A power of two, so that splits of like size share one compilation.
  length = max(8, 1 << (len(plan.start) // 16).bit_length())
  if chosen is None:
    chosen = np.ones(len(plan.start), bool)
  for at, chunk in enumerate(batching.chunks(plan, length)):
    ranked = np.zeros(length, bool)
    part = chosen[at * length : (at + 1) * length]
    ranked[: len(part)] = part
    memory, pending, chunk_ranks, finite = replay_chunk(
      system,
      ranking,
      plan.batch_size,
      params,
      memory,
      pending,
      resident_texts.with_texts(inputs, facet_texts, chunk),
      candidates,
      (chunk.start, chunk.size, chunk.part, chunk.ready, ranked),
      plan.dedup_limits.visits,
    )
    if not finite:
      first, last = chunk.start[0], chunk.start.max()
      raise InputError(
        f'a score is not finite (events {first} to {last} of the log): the '
        'parameters have diverged; allowed: a lower '
        'config.train.learning_rate'
      )
    if ranking is not None:
      real = np.arange(plan.batch_size) < chunk.size[:, None]
      real &= ranked[:, None]
      ranks.append(np.asarray(chunk_ranks, np.float64)[real])
    if progress:
      progress(int(chunk.size.sum()))
  return memory, np.concatenate(ranks or [np.zeros(0)])


@functools.partial(jax.jit, static_argnums=0)
def memory_for_replay(
  system: System, params: Params, memory: Any, inputs: Inputs, pending: Pending
) -> Any:
  """A copy of the memory as a replay starts from it.

  What was pending is applied, and the node tables are there (`propagate`).
  """
  memory = jax.tree.map(jnp.copy, memory)
  memory = system.update(
    params, memory, inputs, pending_updates.due(pending, True)
  )
  return system.propagate(params, memory, inputs, None)


def split_plans(
  system: System, log: EventLog, batch_size: int
) -> dict[str, Any]:
  """The batch plans of the three splits as a system is to be ranked."""
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
  # One number for all, so that they share a compilation.
  counts = [
    batching.with_dedup_limits(plan, log).dedup_limits.visits
    for plan in plans.values()
  ]
  most = dedup.DedupLimits(visits=max(counts) if all(counts) else 0)
  return {name: p._replace(dedup_limits=most) for name, p in plans.items()}


def sample_batches(plan: batching.BatchPlan, events: int) -> np.ndarray:
  """A fixed sample of batches with at least so many events, or all of them.

  Whole batches are drawn, since most of a batch's cost is that of embedding
  the catalogue once.

  Args:
    plan: of a split.
    events: 0 for all.

  Returns:
    bool[batches].
  """
  order = np.random.default_rng(0).permutation(len(plan.start))
  before = np.cumsum(plan.size[order]) - plan.size[order]
  chosen = np.zeros(len(order), bool)
  chosen[order] = (before < events) if events else True
  return chosen


def candidate_mask(log: EventLog, which: str) -> np.ndarray:
  """bool[items + 1]: 'all' items, or the 'future' ones of the two last splits.

  Raises:
    InputError: for any other word.
  """
  mask = np.zeros(log.num_items + 1, bool)
  if which == 'all':
    mask[1:] = True
  elif which == 'future':
    mask[log.items[log.train_end :]] = True
  else:
    raise checks.not_allowed('config.eval.candidates', which, 'all, future')
  return mask


def event_groups(log: EventLog) -> dict[str, np.ndarray]:
  """bool[events] of the groups that a report tells apart (SPEC 5).

  new_user, new_item: no training event. repeat: the user took the item at an
  earlier time. head: the fifth of the items with most training events; tail:
  the others.
  """
  train = slice(0, log.train_end)
  by_item = np.bincount(log.items[train], minlength=log.num_items + 1)
  by_user = np.bincount(log.users[train], minlength=log.num_users + 1)
  pair = log.users.astype(np.int64) * (log.num_items + 1) + log.items
  # np.unique keeps the first place of each pair, the earliest in time.
  _, first, of = np.unique(pair, return_index=True, return_inverse=True)
  head = np.zeros(log.num_items + 1, bool)
  head[1 + np.argsort(-by_item[1:], kind='stable')[: log.num_items // 5]] = True
  return {
    'new_user': by_user[log.users] == 0,
    'new_item': by_item[log.items] == 0,
    'repeat': log.times[first][of] < log.times,
    'head': head[log.items],
    'tail': ~head[log.items],
  }


def ranking_of(config: ml_collections.ConfigDict, log: EventLog) -> Ranking:
  """The `Ranking` of a config.

  Raises:
    InputError: if a cut-off is not below the catalogue's size, or a field has
      a value that is not allowed.
  """
  num_items = log.num_items
  ks = Rule(
    'ks',
    f'one number or more, each from 1 to the number of items, {num_items}',
    lambda ks: (
      len(ks) > 0
      and all(isinstance(k, int) and 1 <= k <= num_items for k in ks)
    ),
  )
  checks.check(
    'config.eval',
    config.eval,
    [
      ks,
      checks.at_least('block_size', 1),
      checks.at_least('validation_events', 0, ' (0: all)'),
    ],
  )
  depth = int(np.bincount(log.users).max()) if config.eval.filter_seen else 0
  return Ranking(config.eval.block_size, depth)
