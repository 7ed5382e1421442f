"""The programs that a live state runs on the device, and the sizes they have.

Rows are padded to a few sizes, so that a few programs serve every question. Of
an answer, embedding the users is compiled for each number of them, and choosing
the best items apart from it: it is quick to compile, and there is a program for
each number of items that are asked for.
"""

import functools
import operator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking as ranking_lib
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.live.growing_graph import Writes
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Pending
from dynllm_jax.types import Pytree
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import UserEmbeddings

_Tree = TypeVar('_Tree')

MAX_BATCH = 2048  # events that are embedded from one memory at most
# To which numbers of rows are padded.
SIZES = (1, 8, 64, 512, MAX_BATCH)
MAX_WRITES = 32_768  # places of a graph; where it is more, all are copied


class ItemCache(Pytree):
  """Items as they were last embedded; row n is item n + 1."""

  vector: Array  # f32[items, dim]
  text: Array | None  # f32[items, llm_dim], as ItemEmbeddings.text


def placed(tree: _Tree) -> _Tree:
  """Arrays that name their device, all in the same way.

  To JAX an array that was put on a mesh of one device, one that was put on that
  device, and one that lies there by default ask for three programs.
  """
  return jax.device_put(tree, jax.local_devices()[0])


def bucket(size: int) -> int:
  """The size, of few, to which so many rows are padded."""
  for fits in SIZES:
    if size <= fits:
      return fits
  return 1 << (size - 1).bit_length()


def pad_rows(rows: np.ndarray, size: int, value: int = 0) -> np.ndarray:
  """A column as i32, filled up to a length; `np.pad` would take far longer."""
  padded = np.full(size, value, np.int32)
  padded[: len(rows)] = rows
  return padded


@jax.jit
def embed_events(
  bound: BoundSystem, memory: SystemMemory, batch: EventBatch
) -> Pending:
  """The events of a batch, embedded, as what waits for its update."""
  embedded = ranking_lib.embed_batch(bound, memory, batch)
  vectors = evaluate.event_vectors(embedded)
  return Pending(batch, *vectors, ready=jnp.array(True))


@functools.partial(jax.jit, static_argnums=3)
def joined(pending: Pending, more: Pending, at: Array, size: int) -> Pending:
  """Events that wait, with more of them from a place on, in as many rows."""

  def widened(column: Array) -> Array:
    room = max(0, size - len(column))
    return jnp.pad(column, [(0, room)] + [(0, 0)] * (column.ndim - 1))

  wide = Pending(
    jax.tree.map(widened, pending.events),
    widened(pending.user_vectors),
    widened(pending.item_vectors),
    pending.ready,
  )
  return pending_updates.write_at(
    wide, more.events, more.user_vectors, more.item_vectors, at
  )


@functools.partial(jax.jit, donate_argnums=1)
def update(
  bound: BoundSystem, memory: SystemMemory, pending: Pending
) -> SystemMemory:
  """The memory after the pending events, its arrays shaped as before."""
  after = bound.update(memory, pending_updates.due(pending, True))
  return memory_lib.shaped_as(after, memory)


@jax.jit
def embed_items(
  bound: BoundSystem, memory: SystemMemory, time: Array
) -> ItemCache:
  """All items, embedded at a time."""
  nobody = jnp.zeros([1], jnp.int32)
  items = jnp.arange(1, bound.inputs.num_items + 1, dtype=jnp.int32)
  _, found = bound.embed(memory, nobody, nobody + time, items, time)
  return ItemCache(found.vector, found.text)


rank = jax.jit(ranking_lib.rank_batch)


@functools.partial(jax.jit, donate_argnums=2)
def refresh(
  bound: BoundSystem,
  memory: SystemMemory,
  cache: ItemCache,
  items: Array,
  time: Array,
) -> ItemCache:
  """The cache with some items embedded at a time; item 0 is left out."""
  nobody = jnp.zeros([1], jnp.int32)
  _, fresh = bound.embed(memory, nobody, nobody + time, items, time)
  rows = jnp.where(items > 0, items - 1, sharded_table.NO_ROW)

  return jax.tree.map(
    lambda old, new: old.at[rows].set(new, mode='drop'),
    cache,
    ItemCache(fresh.vector, fresh.text),
  )


@functools.partial(jax.jit, donate_argnums=0)
def write_graphs(
  graphs: tuple[TemporalGraph, ...], writes: tuple[Writes, ...]
) -> tuple[TemporalGraph, ...]:
  """Graphs with some places and rows changed."""

  def write(graph: TemporalGraph, new: Writes) -> TemporalGraph:
    put = lambda old, at, rows: old.at[at].set(rows, mode='drop')
    return graph.replace(
      offsets=put(graph.offsets, new.nodes, new.starts),
      ends=put(graph.ends, new.nodes, new.ends),
      neighbors=put(graph.neighbors, new.places, new.neighbors),
      times=put(graph.times, new.places, new.times),
    )

  return tuple(map(write, graphs, writes))


@jax.jit
def embed_visitors(
  bound: BoundSystem,
  memory: SystemMemory,
  users: Array,
  times: Array,
  time: Array,
) -> tuple[UserEmbeddings, Array, Array | None]:
  """Users, to be scored against items that were embedded before.

  Args:
    bound: the system.
    memory: strictly before all times.
    users, times: i32[users].
    time: of the items.

  Returns:
    The users; ids of all items, and their columns (`ItemEmbeddings`).
  """
  items = jnp.arange(1, bound.inputs.num_items + 1, dtype=jnp.int32)
  visitors, found = bound.embed(memory, users, times, items, time)

  # Users alone are embedded with one item, since a network may prepare for the
  # number of items that it is asked for. What is aligned with the candidates
  # comes from the call with all of them, of which nothing else is computed.
  alone, _ = bound.embed(memory, users, times, items[:1], time)
  visitors = jax.tree.map(
    lambda one, all_items: one if one.shape == all_items.shape else all_items,
    alone,
    visitors,
  )
  return visitors, items, found.column


@jax.jit
def embed_all(
  bound: BoundSystem,
  memory: SystemMemory,
  users: Array,
  times: Array,
  time: Array,
) -> tuple[UserEmbeddings, ItemEmbeddings]:
  """Users and the whole catalogue; arguments as those of `embed_visitors`."""
  items = jnp.arange(1, bound.inputs.num_items + 1, dtype=jnp.int32)
  return bound.embed(memory, users, times, items, time)


@jax.jit
def scores(visitors: UserEmbeddings, items: ItemEmbeddings) -> Array:
  """Scores of the whole catalogue, item 1 first, f32[users, items]."""
  terms = scoring.summands(visitors, items, None)
  # Where a product for one user is added to anything, XLA's CPU backend first
  # transposes the catalogue: of 11,624 texts of 384 numbers that took 22 of 24
  # milliseconds. The barrier is gone once it has decided not to.
  return functools.reduce(
    operator.add, map(jax.lax.optimization_barrier, terms)
  )


@functools.partial(jax.jit, static_argnames='k')
def best(
  visitors: UserEmbeddings, items: ItemEmbeddings, mask: Array, k: int
) -> tuple[Array, Array, Array]:
  """The best items of users.

  Args:
    visitors: [users].
    items: the whole catalogue, item 1 first.
    mask: bool[users, items], which may be among them.
    k: how many.

  Returns:
    f32[users, k] scores, -inf where there is no further item; i32[users, k]
    items; whether all scores were finite.
  """
  found = scores(visitors, items)
  finite = jnp.all(jnp.isfinite(found) | ~mask)
  highest, at = jax.lax.top_k(jnp.where(mask, found, -jnp.inf), k)
  return highest, at + 1, finite


@functools.partial(jax.jit, static_argnames='k')
def similar(
  vectors: Array, rows: Array, mask: Array, k: int
) -> tuple[Array, Array]:
  """Cosines of the items whose vectors are nearest; f32 and i32[items, k]."""
  lengths = jnp.linalg.norm(vectors, axis=1)
  inverse = jnp.where(lengths > 0, 1 / lengths, 0.0)
  cosines = (vectors[rows] @ vectors.T) * inverse[rows][:, None] * inverse
  best, at = jax.lax.top_k(jnp.where(mask, cosines, -jnp.inf), k)
  return best, at + 1


@functools.partial(jax.jit, donate_argnums=0)
def write_rows(table: Array, rows: Array, values: Array) -> Array:
  """A table with some rows changed; `NO_ROW` is left out."""
  return jnp.asarray(table).at[rows].set(values, mode='drop')


def padded_writes(writes: Writes, size: int) -> Writes:
  """Writes of as many places and rows; those added are dropped."""
  nowhere = sharded_table.NO_ROW
  return Writes(
    pad_rows(writes.places, size, nowhere),
    pad_rows(writes.neighbors, size),
    pad_rows(writes.times, size),
    pad_rows(writes.nodes, size, nowhere),
    pad_rows(writes.starts, size),
    pad_rows(writes.ends, size),
  )
