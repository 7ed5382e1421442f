"""Looking up the facets that serve a user at a time."""

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import binary_search
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS


def lookup(bank: FacetBank, users: Array, times: Array) -> jax.Array:
  """Finds each user's newest profile that closed at or before a time.

  A facet that closes at `c` has read purchases strictly before `c` and serves
  every `t >= c` until the user's next profile (SPEC 3.6). This is a binary
  search in the user's rows. It takes as many steps as any user's rows could
  need, so that the work is the same for every input. Pure; may be jitted.

  Args:
    bank: the facets.
    users: i32[...], in 0..num_users.
    times: i32[...], seconds, of the same shape.

  Returns:
    i32[..., 4], rows of all texts in the order of FACETS; 0 ("unknown")
    before the user's first profile and for user 0.
  """
  users, times = jnp.asarray(users), jnp.asarray(times)
  # The texts are not needed here, so they need not be sharded for it.
  return sharded_table.query_rows(
    _lookup,
    lambda block: len(block.offsets) - 1,
    bank.replace(texts=None, present=None),
    users,
    times,
  )


def _lookup(bank: FacetBank, users: Array, times: Array) -> jax.Array:
  """`lookup` in a bank, or in the block of one that a device has."""
  num_rows = bank.closes.shape[0]
  if not num_rows:
    return jnp.zeros((*users.shape, len(FACETS)), jnp.int32)
  offsets, closes = jnp.asarray(bank.offsets), jnp.asarray(bank.closes)
  start = offsets[users]
  # Rows before `after` serve, those from it on do not.
  after = binary_search.search(
    closes, start, offsets[users + 1], times, bank.longest, side='right'
  )
  rows = jnp.asarray(bank.index)[jnp.maximum(after - 1, 0)]
  return jnp.where((after > start)[..., None], rows, 0)


def embeddings(bank: FacetBank, rows: Array) -> jax.Array:
  """The embeddings of texts.

  Args:
    bank: the facets; every row asked for is among its texts.
    rows: i32[...], of `lookup`.

  Returns:
    f16[..., llm_dim].
  """
  if bank.present is not None:
    rows = binary_search.find(jnp.asarray(bank.present), rows)
  return sharded_table.read_rows(jnp.asarray(bank.texts), rows)
