"""Deduplication: what occurs several times in a batch is computed once.

The lines of an invoice share a user and a time, and with them all that a system
knows of the user then: they are one visit. A popular item stands in many events
of a batch. The plan of the batches states how many distinct visits and items
there are at most, since a compiled program has fixed shapes.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels import row_sums
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import EventLog
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings

Embed = Callable[[Array, Array, Array], tuple[UserEmbeddings, ItemEmbeddings]]

STEP = 64  # limits are multiples of it, so that few programs compile


class DedupLimits(NamedTuple):
  """The most distinct visits and items of any batch of a plan; hashable.

  One more is counted for padding. A limit of 0 means: do not deduplicate, since
  the limit would be no smaller than a batch.
  """

  visits: int = 0
  items: int = 0


class Visits(NamedTuple):
  """The distinct visits of a batch: users, each at a time of its own.

  Attributes:
    users: i32[visits], 0 where there are fewer.
    times: i32[visits], seconds; the batch's first time where there are fewer.
    of_event: i32[batch], the visit of each event; None where every event is a
      visit of its own.
  """

  users: Array
  times: Array
  of_event: Array | None


def limits_of(
  log: EventLog, batches: PlannedBatch, batch_size: int
) -> DedupLimits:
  """How many distinct visits and items a batch of a plan has at most.

  Args:
    log: the prepared log.
    batches: ranges of the log, columns [batches].
    batch_size: rows of a batch, padding included.

  Returns:
    The limits, rounded up.
  """
  visits = items = 0
  for start, size in zip(batches.start, batches.size):
    events = slice(start, start + size)
    by_user = np.lexsort((log.users[events], log.times[events]))
    users, times = log.users[events][by_user], log.times[events][by_user]
    changes = (np.diff(users) != 0) | (np.diff(times) != 0)
    visits = max(visits, 1 + int(np.count_nonzero(changes)))
    items = max(items, len(np.unique(log.items[events])))

  def rounded(most: int) -> int:
    limit = -(-(most + 1) // STEP) * STEP
    return limit if limit < batch_size else 0

  return DedupLimits(rounded(visits), rounded(items))


def unique_visits(batch: EventBatch, num_visits: int) -> Visits:
  """The users of a batch at their times, each visit once.

  Args:
    batch: [batch].
    num_visits: `visits` of `DedupLimits`; 0: every event is a visit of its own.

  Returns:
    `num_visits` visits; one for each event where that is 0.
  """
  if not num_visits:
    return Visits(batch.users, batch.times, None)
  order, number, visit = _number_rows(batch.users, batch.times)
  return Visits(
    jnp.zeros([num_visits], jnp.int32).at[number].set(batch.users[order]),
    jnp.full([num_visits], batch.times[0]).at[number].set(batch.times[order]),
    visit,
  )


def unique_items(ids: Array, num_items: int) -> tuple[Array, Array]:
  """The items of a batch, each once.

  Args:
    ids: i32[batch].
    num_items: `items` of `DedupLimits`, not 0.

  Returns:
    i32[num_items] items, 0 where there are fewer; i32[batch], the place of each
    of the batch's items among them.
  """
  order, number, item = _number_rows(ids)
  return jnp.zeros([num_items], jnp.int32).at[number].set(ids[order]), item


def expand_to_events(
  users: UserEmbeddings, visit: Array | None
) -> UserEmbeddings:
  """Gives each event the embeddings of its visit.

  Args:
    users: [visits].
    visit: i32[batch], the visit of each event; None: they are events already.

  Returns:
    The embeddings, [batch].
  """
  if visit is None:
    return users
  # A scale, which all users share, has no axis to read along.
  return jax.tree.map(
    lambda x: row_sums.read_rows(x, visit) if x.ndim else x, users
  )


def embed_visits(
  bound: BoundSystem, memory: SystemMemory, batch: EventBatch, num_visits: int
) -> tuple[Embed, Array | None]:
  """`System.embed` for a batch, each of its visits once.

  Args:
    bound: the system.
    memory: before the batch.
    batch: the events, [batch].
    num_visits: `visits` of `DedupLimits`.

  Returns:
    `embed` and `visit` of `training_loss.sampled_loss`.
  """
  visits = unique_visits(batch, num_visits)
  users, times = sharded_table.shard_first_axis((visits.users, visits.times))

  def embed(
    items: Array, item_time: Array, key: Array
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    return bound.embed(memory, users, times, items, item_time, key)

  return embed, visits.of_event


def _number_rows(*columns: Array) -> tuple[Array, Array, Array]:
  """Numbers the rows of some columns, equal rows alike, from 0 on.

  Args:
    *columns: i32[rows] each.

  Returns:
    The rows in ascending order, their numbers in that order, and their numbers
    in the order of the columns.
  """
  order = jnp.lexsort(columns)
  ordered = [column[order] for column in columns]
  new = functools.reduce(jnp.logical_or, [c[1:] != c[:-1] for c in ordered])
  number = jnp.pad(jnp.cumsum(new.astype(jnp.int32)), (1, 0))
  return order, number, jnp.zeros_like(number).at[order].set(number)
