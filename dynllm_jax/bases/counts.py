"""Counts of events, and what the count-based floors share (SPEC 6)."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynllm_jax import checks
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import Terms
from dynllm_jax.types import TooLargeError
from dynllm_jax.types import UserEmbeddings

_NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a scatter drops


class DecayedCounts(NamedTuple):
  """`sum 0.5^((t - t_k) / half-life)` of every item, each as of its own time.

  A value is decayed only when it is read or written, so that an update costs
  as much as its events and not as the catalogue.
  """

  value: Array  # f32[items + 1]
  time: Array  # i32[items + 1], seconds; of the item's latest event


def no_decayed_counts(num_items: int) -> DecayedCounts:
  """The counts before the first event (padding row included)."""
  return DecayedCounts(
    value=jnp.zeros([num_items + 1], jnp.float32),
    time=jnp.zeros([num_items + 1], jnp.int32),
  )


def reset_decayed_counts(counts: DecayedCounts) -> DecayedCounts:
  """Counts of the same items as they are before the first event."""
  return no_decayed_counts(len(counts.value) - 1)


def decayed_counts_at(
  counts: DecayedCounts, time: Array, half_life_days: float
) -> Array:
  """The counts of all items at one time.

  Args:
    counts: of events up to that time.
    time: i32[], seconds.
    half_life_days: days after which an event counts half.

  Returns:
    f32[items + 1].
  """
  return counts.value * _decay(time, counts.time, half_life_days)


def add_to_decayed_counts(
  counts: DecayedCounts, events: EventBatch, half_life_days: float
) -> DecayedCounts:
  """Counts some events.

  Args:
    counts: of the events before these.
    events: those whose `mask` is False are left out; several may be of one
      item.
    half_life_days: as in `decayed_counts_at`.

  Returns:
    The counts, as of the latest of each item's events.
  """
  rows = rows_to_write(events.items, events.mask)
  time = jnp.asarray(counts.time).at[rows].max(events.times, mode='drop')
  latest = time[events.items]
  carried = counts.value[events.items] * _decay(
    latest, counts.time[events.items], half_life_days
  )
  # Events of one item all set the same value before each adds its own.
  value = jnp.asarray(counts.value).at[rows].set(carried, mode='drop')
  return DecayedCounts(
    value=value.at[rows].add(
      _decay(latest, events.times, half_life_days), mode='drop'
    ),
    time=time,
  )


def _decay(later: Array, earlier: Array, half_life_days: float) -> Array:
  return jnp.exp2(-temporal.days_between(later, earlier) / half_life_days)


def rows_to_write(nodes: Array, mask: Array) -> Array:
  """Indices of a scatter that drops masked nodes.

  Args:
    nodes: i32[...].
    mask: bool[...], False for a node that is dropped.

  Returns:
    i32[...].
  """
  return jnp.where(mask, nodes, _NO_ROW)


def embeddings(
  users: Array, items: Array, item_scores: Array, copy: Terms | None = None
) -> tuple[UserEmbeddings, ItemEmbeddings]:
  """Embeddings of a system that computes its scores itself.

  The scores never pass through a matrix product: accelerators round its factors
  to 8 or 11 bits, and counts must compare exactly.

  Args:
    users: i32[batch].
    items: i32[candidates].
    item_scores: f32[items + 1], the same for all users, or
      f32[batch, items + 1].
    copy: further terms of each user.

  Returns:
    The embeddings; their vectors are zero.
  """
  shape = (len(users), item_scores.shape[-1])
  return UserEmbeddings(
    vector=jnp.zeros([len(users), 1]),
    copy=copy,
    item_scores=jnp.broadcast_to(item_scores, shape),
  ), ItemEmbeddings(items, jnp.zeros([len(items), 1]))


def weighted_rows(table: Array, rows: Array, weights: Array) -> jax.Array:
  """`sum_k weights[b, k] table[rows[b, k]]`, one row at a time.

  Args:
    table: [n, width], of any numbers.
    rows: i32[batch, k].
    weights: f32[batch, k].

  Returns:
    f32[batch, width]; never [batch, k, width] in memory.
  """

  def add(k: Array, sums: jax.Array) -> jax.Array:
    return sums + weights[:, k, None] * table[rows[:, k]]

  # Later rows are often empty in the whole batch (short histories).
  used = jnp.any(weights != 0, axis=0)
  last = jnp.max(jnp.where(used, jnp.arange(1, rows.shape[1] + 1), 0))
  return jax.lax.fori_loop(
    0, last, add, jnp.zeros([len(rows), table.shape[1]], weights.dtype)
  )


def first_places(past: Neighborhood) -> Array:
  """Where a neighborhood has a node for the first time.

  Args:
    past: [batch, places].

  Returns:
    bool[batch, places]; an item that a user took again is the same item, and
    its place is that of the most recent time.
  """
  places = past.nodes.shape[1]
  same = past.nodes[:, :, None] == past.nodes[:, None, :]
  before = jnp.tril(jnp.ones([places, places], bool), -1)
  return past.mask & ~jnp.any(same & before, axis=-1)


def sum_of_taken(
  table: Array, graph: TemporalGraph, users: Array, times: Array
) -> Array:
  """Sums a table's rows over all that users took, each item once.

  Args:
    table: [items + 1, width], of any numbers.
    graph: the users' temporal CSR.
    users: i32[batch].
    times: i32[batch], seconds; what is strictly earlier is read, all of it.

  Returns:
    f32[batch, width].
  """
  batch = jnp.arange(len(users))[:, None]

  def add(
    carry: tuple[jax.Array, jax.Array], past: Neighborhood
  ) -> tuple[jax.Array, jax.Array]:
    sums, seen = carry
    once = first_places(past) & ~seen[batch, past.nodes]
    nodes = rows_to_write(past.nodes, past.mask)
    return (
      sums + weighted_rows(table, past.nodes, once.astype(jnp.float32)),
      seen.at[batch, nodes].set(True, mode='drop'),
    )

  nothing = (
    jnp.zeros([len(users), table.shape[1]], jnp.float32),
    jnp.zeros([len(users), len(table)], bool),
  )
  return temporal.fold_past(graph, users, times, add, nothing)[0]


def check_positive(config: Any, *fields: str) -> None:
  """Checks that fields of `config.model` are above zero.

  Raises:
    InputError: naming the first that is not.
  """
  checks.check('config.model', config, map(checks.above_zero, fields))


def check_table(num_items: int, max_table_gib: float) -> None:
  """Checks that a dense table over pairs of items may be made.

  Raises:
    TooLargeError: if it is larger than `max_table_gib`.
  """
  size = (num_items + 1) ** 2 * 4
  check_size(size, max_table_gib, f'the table over pairs of {num_items} items')


def check_size(size: int, max_table_gib: float, what: str) -> None:
  """Checks that tables of a size may be made.

  Args:
    size: bytes.
    max_table_gib: what is allowed.
    what: the tables, in words.

  Raises:
    TooLargeError: if they are larger than `max_table_gib`.
  """
  gib = size / 2**30
  if gib > max_table_gib:
    raise TooLargeError(
      f'config.model.max_table_gib: {max_table_gib!r} is not enough for '
      f'{what}, which takes {gib:.3g} GiB; allowed: a higher value, or fewer '
      'items (config.data.min_item_users)'
    )
