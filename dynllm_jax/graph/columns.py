"""Sums by candidate: the columns in which sparse terms are added up."""

import jax.numpy as jnp

from dynllm_jax.kernels import binary_search
from dynllm_jax.types import Array


def of_candidates(ids: Array) -> tuple[Array, Array]:
  """Sorts candidates, so that a term finds its column by binary search.

  Args:
    ids: i32[candidates], in any order, also repeated.

  Returns:
    i32[candidates] ids, ascending; i32[candidates], the first of the columns
    that have a candidate's id, in which its sums stand.
  """
  ordered = jnp.sort(ids)
  return ordered, binary_search.find(ordered, ids)


def find(ordered: Array, items: Array) -> Array:
  """The columns of some items.

  Args:
    ordered: i32[candidates], ascending.
    items: i32[...].

  Returns:
    i32[...]; the number of columns, which a scatter drops, for an item that is
    no candidate.
  """
  column = binary_search.find(ordered, items)
  found = jnp.take(ordered, column, mode='clip') == items
  return jnp.where(found & (column < len(ordered)), column, len(ordered))
