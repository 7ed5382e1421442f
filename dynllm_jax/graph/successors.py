"""What follows what: transitions between items, as they happen (SPEC 3.12).

A table over pairs of items grows with the square of the catalogue: a small one
has it, and its counts are exact. In a larger one every item keeps the counts of
`num_kept` successors. As long as an item has had no more of them its counts are
exact; beyond that a new successor takes the place of the one with the smallest
count among a few, so that what follows often stays.
"""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.kernels import platforms
from dynllm_jax.kernels import row_sums
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Successors

# Of a catalogue that has a table, by itself: 64 MiB.
_LARGEST_TABLE = 4096
_KEPT = 64  # successors of an item of a larger one
# Places that a newcomer chooses among; fewer forget what is frequent.
_CHOICE = 8
_ROWS_AT_ONCE = 20  # of the table, added up in one loop over its columns
_NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a scatter drops


def empty(num_items: int, num_kept: int) -> Successors:
  """The counts before the first event (padding row included).

  Args:
    num_items: of the catalogue.
    num_kept: successors of an item, rounded up to a multiple of 8; 0 for all
      of a catalogue that has a table, and 64 of a larger one.
  """
  rows = num_items + 1
  totals = jnp.zeros([rows], jnp.float32)
  if not num_kept and num_items <= _LARGEST_TABLE:
    return Successors(jnp.zeros([rows, rows], jnp.float32), totals)
  num_kept = -(-(num_kept or _KEPT) // _CHOICE) * _CHOICE
  return Successors(
    counts=jnp.zeros([rows, num_kept], jnp.float32),
    totals=totals,
    items=jnp.zeros([rows, num_kept], jnp.int32),
    arrivals=jnp.zeros([rows], jnp.int32),
  )


def grown(successors: Successors, num_items: int) -> Successors:
  """The same counts, of more items; a table stays one.

  Args:
    successors: the counts.
    num_items: of the catalogue.
  """
  rows = num_items + 1
  wide = rows if successors.items is None else successors.counts.shape[1]
  pad = lambda column, *shape: jnp.pad(
    column, [(0, new - old) for new, old in zip(shape, column.shape)]
  )
  counts = pad(successors.counts, rows, wide)
  totals = pad(successors.totals, rows)
  if successors.items is None or successors.arrivals is None:
    return Successors(counts, totals)
  return Successors(
    counts,
    totals,
    pad(successors.items, rows, wide),
    pad(successors.arrivals, rows),
  )


def weighted_counts(
  successors: Successors,
  items: Array,
  weights: Array,
  ids: Array,
  table: columns.Table,
) -> Array:
  """Sums of the counts of what followed some items; no gradient passes.

  Args:
    successors: the counts.
    items: i32[batch, k].
    weights: f32[batch, k], what the counts of each are multiplied with.
    ids: i32[candidates].
    table: the columns of the candidates.

  Returns:
    f32[batch, columns].
  """
  successors, weights = jax.lax.stop_gradient((successors, weights))
  if successors.items is None:
    sums = _sum_of_rows(successors.counts, items, weights)
    return row_sums.read_columns(sums, ids)

  numbers = successors.counts[items] * weights[..., None]
  following = successors.items[items]
  column = jnp.where(following > 0, table.find(following), table.size)
  each_user = (len(items), -1)
  return row_sums.sum_in_rows(
    numbers.reshape(each_user), column.reshape(each_user), table.size
  )


def _sum_of_rows(table: Array, rows: Array, weights: Array) -> Array:
  """`sum_k weights[:, k] table[rows[:, k]]`, f32[batch, columns].

  A CPU goes from one of the batch to the next and adds up some of its rows in
  one loop over the columns. All at once took some ten times as long, and a row
  for each of the batch after the other, over which the sums go to memory and
  back, nearly twice as long.
  """

  def in_turn(table: Array, rows: Array, weights: Array) -> Array:
    table = jnp.asarray(table)

    def sum_one(one: tuple[Array, Array]) -> Array:
      rows, weights = one
      total: Array = jax.lax.fori_loop(
        0,
        len(rows),
        lambda k, total: total + weights[k] * table[rows[k]],
        jnp.zeros([table.shape[1]], jnp.float32),
        unroll=_ROWS_AT_ONCE,
      )
      return total

    return jax.lax.map(sum_one, (rows, weights))

  def at_once(table: Array, rows: Array, weights: Array) -> Array:
    return jnp.sum(weights[..., None] * jnp.asarray(table)[rows], axis=1)

  if not sharded_table.is_one_device():
    return at_once(table, rows, weights)
  total: Array = platforms.on_cpu(in_turn, at_once, table, rows, weights)
  return total


def add(
  successors: Successors,
  items: Array,
  following: Array,
  weights: Array,
  mask: Array,
) -> Successors:
  """Counts transitions.

  Args:
    successors: the counts so far.
    items: i32[pairs], the earlier item of each.
    following: i32[pairs], what followed it.
    weights: f32[pairs], what a transition counts.
    mask: bool[pairs], which count at all.

  Returns:
    The counts. The order of the pairs does not matter, but for the rounding
    of sums.
  """
  totals = row_sums.add_to_rows(
    successors.totals, jnp.where(mask, items, _NO_ROW), weights
  )
  if successors.items is None or successors.arrivals is None:
    num_rows = len(totals)
    pair = jnp.where(mask, items * num_rows + following, _NO_ROW)
    flat = successors.counts.reshape(-1)
    counts = row_sums.add_to_rows(flat, pair, weights)
    return Successors(counts.reshape(num_rows, num_rows), totals)

  num_kept = successors.items.shape[1]
  items, following, weights, real = _merged(items, following, weights, mask)

  # Successors that have a place already.
  same = successors.items[items] == following[:, None]
  known = real & same.any(1)
  # No place twice; the others lie behind the table, each in a row of its own.
  behind = len(successors.counts) + jnp.arange(len(items))
  counts = (
    jnp.asarray(successors.counts)
    .at[jnp.where(known, items, behind), jnp.argmax(same, 1)]
    .add(weights, mode='drop', unique_indices=True)
  )

  # Newcomers to free places, in the order in which they are sorted.
  new = real & ~known
  number = successors.arrivals[items] + _number_within(items, new)
  free = new & (number < num_kept)
  row = jnp.where(free, items, _NO_ROW)
  kept = (
    jnp.asarray(successors.items).at[row, number].set(following, mode='drop')
  )
  counts = counts.at[row, number].set(weights, mode='drop')

  # Of the others each has some places of its own to choose among; those of
  # one item that are more than there are such groups of places have none.
  group = number % (num_kept // _CHOICE)
  first_full = jnp.maximum(successors.arrivals[items], num_kept)
  late = new & ~free & (number - first_full < num_kept // _CHOICE)
  places = group[:, None] * _CHOICE + jnp.arange(_CHOICE)
  smallest = jnp.argmin(counts[items[:, None], places], axis=1)
  place = group * _CHOICE + smallest
  row = jnp.where(late, items, _NO_ROW)
  arrivals = (
    jnp.asarray(successors.arrivals)
    .at[jnp.where(new, items, _NO_ROW)]
    .add(1, mode='drop')
  )
  return Successors(
    counts=counts.at[row, place].set(weights, mode='drop'),
    totals=totals,
    items=kept.at[row, place].set(following, mode='drop'),
    arrivals=arrivals,
  )


def _merged(
  items: Array, following: Array, weights: Array, mask: Array
) -> tuple[Array, Array, Array, Array]:
  """Each pair once, sorted, with the sum of its weights; masked pairs last."""
  size = len(items)
  order = jnp.lexsort((following, items, ~mask))
  items, following, real = items[order], following[order], mask[order]
  changed = functools.reduce(
    jnp.logical_or, [x[1:] != x[:-1] for x in (items, following, real)]
  )
  pair = jnp.pad(jnp.cumsum(changed.astype(jnp.int32)), (1, 0))
  sums = row_sums.sum_rows(weights[order], pair, size)

  def first(values: Array) -> Array:
    # All rows of a pair agree, so it does not matter which one is written.
    return jnp.zeros([size], values.dtype).at[pair].set(values)

  return first(items), first(following), sums, first(real)


def _number_within(items: Array, chosen: Array) -> Array:
  """How many chosen rows of the same item stand before each, i32[rows].

  Args:
    items: i32[rows]; rows of one item stand together.
    chosen: bool[rows].
  """
  before = jnp.cumsum(chosen.astype(jnp.int32)) - chosen
  starts = jnp.pad(items[1:] != items[:-1], (1, 0), constant_values=True)
  at_start = jax.lax.cummax(jnp.where(starts, before, 0))
  return before - at_start
