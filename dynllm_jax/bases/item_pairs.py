"""Counts over pairs of items of the binary training matrix (SPEC 6)."""

import jax
import jax.numpy as jnp

from dynllm_jax.bases import counts
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs

_BLOCK = 2048  # pairs (user, item) that one step takes


def count_takers(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """Users that took both items of a pair in training, and each item's.

  The distinct pairs (user, item) are sorted by user, so that a pair and the
  one s places on are often two items of one user. A step counts a block of
  pairs for one s, and a block's s goes as far as its busiest user needs: the
  work follows the users' pairs of items, and nothing large is held beside the
  table.

  Args:
    inputs: whose first `train_events` events are read.

  Returns:
    f32[items + 1, items + 1], symmetric, 0 on the diagonal; and f32[items + 1].
  """
  rows, size = inputs.num_items + 1, len(inputs.users)

  # Sort the training pairs by user, and pairs that occurred before to the end.
  nobody = jnp.iinfo(jnp.int32).max  # sorts last
  users = jnp.where(
    jnp.arange(size) < inputs.train_events, inputs.users, nobody
  )
  order = jnp.lexsort((inputs.items, users))
  users, items = users[order], inputs.items[order]
  again = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
  users = jnp.where(jnp.pad(again, (1, 0)), nobody, users)
  order = jnp.argsort(users, stable=True)
  users, items = users[order], items[order]
  real = users < nobody

  takers = (
    jnp.zeros([rows])
    .at[counts.rows_to_write(items, real)]
    .add(1.0, mode='drop')
  )
  # How many pairs of the same user follow each.
  follow = jnp.searchsorted(users, users, side='right') - jnp.arange(size) - 1
  follow = jnp.where(real, follow, 0)

  def count_block(block: Array, table: jax.Array) -> jax.Array:
    at = block * _BLOCK + jnp.arange(_BLOCK)
    left = jnp.take(items, at, mode='clip')
    reach = jnp.take(follow, at, mode='fill', fill_value=0)

    def count(s: Array, table: jax.Array) -> jax.Array:
      right = jnp.take(items, at + s, mode='clip')
      source = counts.rows_to_write(left, s <= reach)
      return table.at[source, right].add(1.0, mode='drop')

    return jax.lax.fori_loop(1, reach.max() + 1, count, table)

  both = jax.lax.fori_loop(
    0, -(-size // _BLOCK), count_block, jnp.zeros([rows, rows])
  )
  return both + both.T, takers
