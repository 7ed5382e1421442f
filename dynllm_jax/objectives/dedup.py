"""What a batch has several times and is computed once: visits and items.

The lines of an invoice share a user and a time, and with them all that a system
knows of the user then; a popular item stands in many events of a batch. The
plan of the batches knows how many distinct ones there are at most.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import UserEmbeddings

_STEP = 64  # bounds are multiples, so that few programs compile


class DedupLimits(NamedTuple):
  """What a batch of a plan has at most, with one for padding; hashable.

  0 where that is no less than a batch: nothing is gained by looking.
  """

  visits: int = 0  # users at a time of their own
  items: int = 0


def limits_of(
  log: EventLog, start: np.ndarray, size: np.ndarray, batch_size: int
) -> DedupLimits:
  """What every batch of a plan keeps to.

  Args:
    log: whose events the batches are.
    start, size: i32[batches], of the plan.
    batch_size: rows of a batch.
  """
  visits = items = 0
  for first, length in zip(start, size):
    part = slice(first, first + length)
    by_user = np.lexsort((log.users[part], log.times[part]))
    users, times = log.users[part][by_user], log.times[part][by_user]
    changes = (np.diff(users) != 0) | (np.diff(times) != 0)
    visits = max(visits, 1 + np.count_nonzero(changes))
    items = max(items, len(np.unique(log.items[part])))

  def rounded(most):
    bound = -(-(most + 1) // _STEP) * _STEP
    return bound if bound < batch_size else 0

  return DedupLimits(rounded(visits), rounded(items))


def unique_visits(
  batch: EventBatch, num_visits: int
) -> tuple[Array, Array, Array | None]:
  """The users of a batch at their times, each once.

  Args:
    batch: [batch].
    num_visits: of `DedupLimits`; 0: every event is a visit of its own.

  Returns:
    i32[num_visits] users and i32[num_visits] times, of user 0 where there are
    fewer, and i32[batch], the visit of each event; None: the batch's own.
  """
  if not num_visits:
    return batch.users, batch.times, None
  order, number, visit = _numbered(batch.users, batch.times)
  return (
    jnp.zeros([num_visits], jnp.int32).at[number].set(batch.users[order]),
    jnp.full([num_visits], batch.times[0]).at[number].set(batch.times[order]),
    visit,
  )


def unique_items(ids: Array, num_items: int) -> tuple[Array, Array]:
  """The items of a batch, each once.

  Args:
    ids: i32[batch].
    num_items: of `DedupLimits`, not 0.

  Returns:
    i32[num_items], 0 where there are fewer, and i32[batch], the place of each.
  """
  order, number, place = _numbered(ids)
  return jnp.zeros([num_items], jnp.int32).at[number].set(ids[order]), place


def expand_to_events(
  users: UserEmbeddings, visit: Array | None
) -> UserEmbeddings:
  """Embeddings of visits, [visits], as those of their events, [batch]."""
  if visit is None:
    return users
  # What one user has is an array; what all share, a scale, has no axis.
  return jax.tree.map(lambda x: x[visit] if x.ndim else x, users)


def _numbered(*keys):
  """Numbers equal rows of some columns alike, from 0 on.

  Returns:
    The rows in ascending order, their numbers in that order, and in their own.
  """
  order = jnp.lexsort(keys)
  columns = [key[order] for key in keys]
  new = functools.reduce(jnp.logical_or, [c[1:] != c[:-1] for c in columns])
  number = jnp.pad(jnp.cumsum(new.astype(jnp.int32)), (1, 0))
  return order, number, jnp.zeros_like(number).at[order].set(number)
