"""What follows what: transitions between items, as they happen (SPEC 3.12).

A table over pairs of items would grow with the square of the catalogue. Here
every item keeps the counts of `num_kept` successors. As long as an item has
had no more of them its counts are exact; beyond that a new successor takes
the place of the one with the smallest count among a few, so that what follows
often stays.
"""

import functools

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array
from dynllm_jax.types import Successors

# Places that a newcomer chooses among; fewer forget what is frequent.
_CHOICE = 8
_NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a scatter drops


def empty(num_items: int, num_kept: int) -> Successors:
  """The counts before the first event (padding row included).

  Args:
    num_items: of the catalogue.
    num_kept: successors of an item, rounded up to a multiple of 8.
  """
  num_kept = -(-num_kept // _CHOICE) * _CHOICE
  rows = num_items + 1
  return Successors(
    items=jnp.zeros([rows, num_kept], jnp.int32),
    counts=jnp.zeros([rows, num_kept], jnp.float32),
    totals=jnp.zeros([rows], jnp.float32),
    arrivals=jnp.zeros([rows], jnp.int32),
  )


def read(successors: Successors, items: Array) -> tuple[Array, Array, Array]:
  """What followed some items.

  Args:
    successors: the counts.
    items: i32[...].

  Returns:
    i32[..., num_kept] successors, 0 where there are fewer; f32[..., num_kept]
    their counts; f32[...] the items' totals.
  """
  return (
    successors.items[items],
    successors.counts[items],
    successors.totals[items],
  )


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
  num_kept = successors.items.shape[1]
  totals = row_sums.add_to_rows(
    successors.totals, jnp.where(mask, items, _NO_ROW), weights
  )
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
    items=kept.at[row, place].set(following, mode='drop'),
    counts=counts.at[row, place].set(weights, mode='drop'),
    totals=totals,
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
