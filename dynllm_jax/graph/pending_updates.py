"""Scored events whose update of the memory is still to be applied (SPEC 4)."""

import jax
import jax.numpy as jnp

from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import ROOM_FOR_ALL
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings


def empty_pending(capacity: int, user_dim: int, item_dim: int) -> Pending:
  """A pending batch without events.

  Args:
    capacity: events that it can hold.
    user_dim, item_dim: widths of the vectors.
  """
  # Three separate arrays: a buffer can be donated only once.
  users, items, times = (jnp.zeros([capacity], jnp.int32) for _ in range(3))
  return Pending(
    events=EventBatch(users, items, times, jnp.zeros([capacity], bool)),
    user_vectors=jnp.zeros([capacity, user_dim]),
    item_vectors=jnp.zeros([capacity, item_dim]),
    ready=jnp.array(False),
  )


def empty_pending_for(
  bound: BoundSystem, memory: SystemMemory, capacity: int
) -> Pending:
  """A pending batch without events, as wide as a system's vectors."""
  one = jnp.zeros([1], jnp.int32)

  def embed_one(
    bound: BoundSystem, memory: SystemMemory
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    return bound.embed(bound.propagate(memory), one, one, one, one[0])

  users, items = jax.eval_shape(embed_one, bound, memory)
  return empty_pending(capacity, users.vector.shape[-1], items.vector.shape[-1])


def add_pending(
  pending: Pending,
  batch: EventBatch,
  user_vectors: Array,
  item_vectors: Array,
  planned: PlannedBatch,
) -> Pending:
  """Adds a scored batch; the first part of a group replaces what was there.

  Args:
    pending: capacity a multiple of the batch.
    batch: the events.
    user_vectors: f32[batch, dim], `h_u(t)`.
    item_vectors: f32[batch, dim], `h_i(t_B)`.
    planned: which part of its group of equal times the batch is.

  Returns:
    Pending; its vectors carry no gradient.
  """
  # The first part of a group overwrites as many rows of the group before; the
  # other rows of that group lose their mask.
  keep = pending.events.mask & (planned.part > 0)
  pending = pending.replace(events=pending.events.replace(mask=keep))
  # Where no group is cut into parts, a batch replaces the one before.
  whole = len(batch.mask) == len(keep)
  at = 0 if whole else planned.part * len(batch.mask)
  return write_at(pending, batch, user_vectors, item_vectors, at).replace(
    ready=planned.ready
  )


def write_at(
  pending: Pending,
  batch: EventBatch,
  user_vectors: Array,
  item_vectors: Array,
  at: Array | int,
) -> Pending:
  """Writes events over the rows from a place on.

  Args:
    pending: with as many rows from there on.
    batch: the events.
    user_vectors, item_vectors: f32[batch, dim].
    at: i32[].

  Returns:
    Pending; its vectors carry no gradient.
  """

  def write(old: Array, new: Array) -> Array:
    new = jax.lax.stop_gradient(new)
    if isinstance(at, int) and at == 0 and new.shape == old.shape:
      return new
    return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0)

  return pending.replace(
    events=jax.tree.map(write, pending.events, batch),
    user_vectors=write(pending.user_vectors, user_vectors),
    item_vectors=write(pending.item_vectors, item_vectors),
  )


def due(
  pending: Pending, real: Array | bool, limits: OwnLimits = ROOM_FOR_ALL
) -> Pending:
  """The pending events whose update may be applied: all of them, or none.

  Args:
    pending: the events that wait.
    real: bool[], False in a padding step of a scan, which changes nothing.
    limits: how much of it falls to one device, where a plan says so.

  Returns:
    Pending; its mask is True for the events that are due.
  """
  mask = pending.events.mask & pending.ready & real
  events = pending.events.replace(mask=mask, limits=limits)
  return pending.replace(events=events)
