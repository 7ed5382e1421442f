"""What users took of some candidates, over their whole history (SPEC 3.12)."""

from collections.abc import Callable
from typing import NamedTuple
from typing import TypeVar

import jax
import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import TemporalGraph

_BLOCK = 8192  # events that are read at once, of all users together
# A list of takes has room for a block of them for so many users.
_USERS_A_BLOCK = 64
_MOST_BLOCKS = 16

_Carry = TypeVar('_Carry')


class Takes(NamedTuple):
  """How often users took items, and when last."""

  number: Array  # i32[batch, columns]
  last: Array  # i32[batch, columns], seconds; -1 where it is 0
  listed: 'Listed'


class Listed(NamedTuple):
  """The first of the takes, one by one, a whole number of blocks of them."""

  row: Array  # i32[takes], the user's; the size of the batch after the last
  column: Array  # i32[takes]
  total: Array  # i32[], of all takes, also those that the list has no room for

  @property
  def has_all(self) -> Array:
    return self.total <= len(self.row)

  def fold(
    self, visit: Callable[[_Carry, Array, Array], _Carry], carry: _Carry
  ) -> _Carry:
    """Visits the list, a block of rows and columns at a time.

    Args:
      visit: `(carry, row, column) -> carry`.
      carry: before the first block.

    Returns:
      The carry after the last block that has a take.
    """

    def visit_block(block: Array, carry: _Carry) -> _Carry:
      row, column = (
        jax.lax.dynamic_slice_in_dim(x, block * _BLOCK, _BLOCK)
        for x in (self.row, self.column)
      )
      return visit(carry, row, column)

    return jax.lax.fori_loop(0, -(-self.total // _BLOCK), visit_block, carry)

  def add(self, row: Array, column: Array, real: Array) -> 'Listed':
    """The list, longer by those of i32[n] that are real."""
    place = self.total + jnp.cumsum(real.astype(jnp.int32)) - 1
    place = jnp.where(real, place, len(self.row))
    return Listed(
      jnp.asarray(self.row).at[place].set(row, mode='drop'),
      jnp.asarray(self.column).at[place].set(column, mode='drop'),
      self.total + jnp.sum(real.astype(jnp.int32)),
    )


def takes_before(
  graph: TemporalGraph,
  users: Array,
  times: Array,
  table: columns.Table,
) -> Takes:
  """Counts each user's strictly earlier events on each candidate.

  The histories are laid end to end and read in blocks, so that the work
  follows their sum and not the longest of them.

  Args:
    graph: of users.
    users: i32[batch].
    times: i32[batch], seconds.
    table: the columns of the candidates.

  Returns:
    The takes, in the column of each candidate.
  """
  lengths = temporal.count_before(graph, users, times)
  ends = jnp.cumsum(lengths)
  shape = len(users), table.size

  def read(block: Array, takes: Takes) -> Takes:
    place = block * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
    real = place < ends[-1]
    row = jnp.searchsorted(ends, place, side='right').astype(jnp.int32)
    row = jnp.minimum(row, len(users) - 1)
    number_within = place - (ends[row] - lengths[row])
    items, at = temporal.events_at(
      graph, jnp.where(real, users[row], 0), jnp.where(real, number_within, 0)
    )
    column = jnp.where(real, table.find(items), table.size)
    return Takes(
      jnp.asarray(takes.number).at[row, column].add(1, mode='drop'),
      jnp.asarray(takes.last).at[row, column].max(at, mode='drop'),
      takes.listed.add(row, column, column < table.size),
    )

  room = _BLOCK * min(-(-len(users) // _USERS_A_BLOCK), _MOST_BLOCKS)
  nothing = Takes(
    jnp.zeros(shape, jnp.int32),
    jnp.full(shape, -1, jnp.int32),
    Listed(
      jnp.full([room], len(users), jnp.int32),
      jnp.zeros([room], jnp.int32),
      jnp.int32(0),
    ),
  )
  return jax.lax.fori_loop(0, -(-ends[-1] // _BLOCK), read, nothing)
