"""Ranks of events' items among the whole catalogue (SPEC 5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.graph import temporal
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import Pytree
from dynllm_jax.types import static_field
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings

_Sums = tuple[
  jax.Array, jax.Array, jax.Array
]  # positives, rivals so far, all finite


class Ranking(Pytree):
  """Which items an event's item is ranked among, and how.

  Attributes:
    candidates: bool[items + 1], which items take part.
    block_size: items scored at once.
    filter_seen: whether what the user took strictly earlier is left out.
  """

  candidates: Array
  block_size: int = static_field()
  filter_seen: bool = static_field(default=False)


# Of the fields of `config.eval`, before the log is known.
RULES = (
  Rule(
    'ks',
    'one whole number or more, each from 1',
    lambda ks: len(ks) > 0 and all(isinstance(k, int) and k >= 1 for k in ks),
  ),
  checks.one_of('candidates', ('all', 'future')),
  checks.at_least('block_size', 1),
  checks.at_least('validation_events', 0, ' (0: all)'),
  checks.one_of('filter_seen', ('auto', True, False)),
)


def check(eval_config: ml_collections.ConfigDict) -> None:
  """Checks the fields of `config.eval`.

  Raises:
    InputError: naming those whose value is not allowed.
  """
  checks.check('config.eval', eval_config, RULES)


def make_ranking(config: ml_collections.ConfigDict, log: EventLog) -> Ranking:
  """The `Ranking` of a config.

  Raises:
    InputError: if a cut-off is beyond the catalogue's size, or a field has a
      value that is not allowed.
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
  checks.check('config.eval', config.eval, [ks, *RULES])

  return Ranking(
    candidate_mask(log, config.eval.candidates),
    config.eval.block_size,
    filters_seen(config.eval.filter_seen, log),
  )


def filters_seen(choice: str | bool, log: EventLog) -> bool:
  """Whether items that the user took strictly earlier are left out.

  Args:
    choice: `config.eval.filter_seen`; 'auto' leaves it to the training split:
      they are left out where no user takes an item twice (SPEC 5).
    log: the prepared log.
  """
  if choice != 'auto':
    return bool(choice)
  pairs = temporal.pair_key(log.users, log.items)[: log.train_end]
  return len(np.unique(pairs)) == len(pairs)


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


class Embedded(NamedTuple):
  """The events of a batch as a system knows them before it."""

  visits: dedup.Visits
  users: UserEmbeddings  # [visits]
  items: ItemEmbeddings  # [batch], at the batch's first time (SPEC 3.9)


def embed_batch(
  bound: BoundSystem,
  memory: SystemMemory,
  batch: EventBatch,
  num_visits: int = 0,
) -> Embedded:
  """Embeds the users of a batch, each visit once, and its items.

  Args:
    bound: the system.
    memory: before the batch.
    batch: the events.
    num_visits: `visits` of the plan's `DedupLimits`.
  """
  visits = dedup.unique_visits(batch, num_visits)
  users, times = sharded_table.shard_first_axis((visits.users, visits.times))
  return Embedded(
    visits,
    *bound.embed(memory, users, times, batch.items, batch.times[0]),
  )


def rank_batch(
  bound: BoundSystem,
  memory: SystemMemory,
  ranking: Ranking,
  batch: EventBatch,
  embedded: Embedded | None = None,
) -> tuple[Array, Array]:
  """Ranks each event's item among all candidates.

  `rank = 1 + #{score > positive} + #{score == positive, other item} / 2`. Every
  candidate is embedded at the batch's first time; a score and its positive
  come from the same product, so that a tie is a tie. Where the catalogue needs
  several blocks it is scored twice: once for the positives, once to compare.

  Args:
    bound: the system.
    memory: before the batch.
    ranking: how.
    batch: the events.
    embedded: the batch, where it is embedded already.

  Returns:
    f32[batch] ranks, and bool[], whether every score was finite.
  """
  num_items = bound.inputs.num_items
  block = sharded_table.round_up_to_devices(
    min(ranking.block_size * sharded_table.num_replicas(), num_items)
  )
  num_blocks = -(-num_items // block)
  row = jnp.arange(len(batch.mask))
  visits, visitors, _ = embedded or embed_batch(bound, memory, batch)

  def score_block(index: int | Array) -> tuple[Array, Array]:
    """Ids of a block of the catalogue, and f32[batch, block] their scores."""
    ids = sharded_table.shard_first_axis(
      1 + index * block + jnp.arange(block, dtype=jnp.int32)
    )
    users, times = sharded_table.shard_first_axis((visits.users, visits.times))
    # Of the users only what belongs to the block is computed with it.
    found, items = bound.embed(
      memory, users, times, jnp.minimum(ids, num_items), batch.times[0]
    )
    users_here = visitors.replace(counts=found.counts)

    # Each device scores its shard of the catalogue for every user.
    users_here = sharded_table.shard_then_replicate(users_here)
    scores = sharded_table.shard_last_axis(
      scoring.score(users_here, items, num_items)
    )
    if visits.of_event is not None:
      scores = scores[visits.of_event]
    return ids, scores

  def positives_in(ids: Array, scores: Array) -> jax.Array:
    """Scores of the events' own items where the block has them, else 0."""
    column = batch.items - ids[0]
    inside = (column >= 0) & (column < block)
    found = scores[row, jnp.clip(column, 0, block - 1)]
    return jnp.where(inside, found, 0.0)

  def count_rivals(
    ids: Array, scores: Array, positive: Array
  ) -> tuple[jax.Array, jax.Array]:
    """Rivals above plus half of those level; whether all scores are finite."""
    is_item = ids <= num_items
    rival = is_item & ranking.candidates[jnp.minimum(ids, num_items)]
    rival = rival & (ids != batch.items[:, None])
    if ranking.filter_seen:
      rival &= ~_seen(bound.inputs, batch, ids)

    # Two for a rival above and one for one that is level: one sum, one pass.
    above, least = scores > positive[:, None], scores >= positive[:, None]
    halves = jnp.where(rival, above.astype(jnp.int32) + least, 0)
    finite = jnp.isfinite(scores) | ~batch.mask[:, None]
    return jnp.sum(halves, axis=1) / 2, finite.all()

  if num_blocks == 1:
    ids, scores = score_block(0)
    beaten, finite = count_rivals(ids, scores, positives_in(ids, scores))
    return 1 + beaten, finite

  def visit_block(carry: _Sums, turn: Array) -> tuple[_Sums, None]:
    positive, beaten, finite = carry
    scored = score_block(turn % num_blocks)

    def count() -> _Sums:
      more, all_finite = count_rivals(*scored, positive)
      return positive, beaten + more, finite & all_finite

    return jax.lax.cond(
      turn < num_blocks,
      lambda: (positive + positives_in(*scored), beaten, finite),
      count,
    ), None

  # One loop for both: compiled twice, a score might round in two ways.
  zeros = jnp.zeros([len(row)])
  (_, beaten, finite), _ = jax.lax.scan(
    visit_block,
    (zeros, zeros, jnp.array(True)),
    jnp.arange(2 * num_blocks, dtype=jnp.int32),
  )
  return 1 + beaten, finite


def _seen(inputs: Inputs, batch: EventBatch, ids: Array) -> Array:
  """bool[batch, block]: items that an event's user took strictly earlier."""
  row = jnp.arange(len(batch.mask))[:, None]

  def mark(seen: jax.Array, past: Neighborhood) -> jax.Array:
    column = jnp.where(past.mask, past.nodes - ids[0], -1)
    column = jnp.where((column >= 0) & (column < len(ids)), column, len(ids))
    return seen.at[row, column].set(True, mode='drop')

  nothing = jnp.zeros([len(batch.mask), len(ids)], bool)
  return temporal.fold_past(
    inputs.user_graph, batch.users, batch.times, mark, nothing
  )
