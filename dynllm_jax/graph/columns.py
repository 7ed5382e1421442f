"""Sums by candidate: the columns in which sparse terms are added up."""

from typing import NamedTuple

import jax.numpy as jnp

from dynllm_jax.types import Array


class Table(NamedTuple):
  """The column of every item of the catalogue."""

  column: Array  # i32[num_items + 1]; `size` for an item that is no candidate
  size: int  # columns, as many as candidates

  def find(self, items: Array) -> Array:
    """The columns of some items.

    Args:
      items: i32[...], 0 to the number of items.

    Returns:
      i32[...]; `size`, which a scatter drops, for an item that is no candidate.
    """
    return jnp.take(self.column, items, mode='clip')


def of_candidates(ids: Array, num_items: int) -> tuple[Table, Array]:
  """The columns of candidates: all of one id share that of the first of them.

  A term finds its column in a table of the catalogue, by one read. A binary
  search in sorted ids takes a read for each bit of their number: of 614,400
  terms among 1,024 candidates, 10 ms on a CPU. By the table it is .4 ms with
  12,101 items and .8 ms with a million, whose 4 MB are filled in .2 ms.

  Args:
    ids: i32[candidates], in any order, also repeated.
    num_items: of the catalogue, padding not counted.

  Returns:
    The table, and i32[candidates], the column of each candidate.
  """
  size = len(ids)
  nowhere = jnp.full([num_items + 1], size, jnp.int32)
  first = nowhere.at[ids].min(jnp.arange(size, dtype=jnp.int32))
  table = Table(first, size)
  return table, table.find(ids)
