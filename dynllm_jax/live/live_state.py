"""What a recommender holds on the device, and how events change it (SPEC 10).

A batch goes through the very functions of the replay (engine/evaluate.py): its
events are embedded from the memory before it, wait in `Pending`, and update the
memory. Everything here is a function of the batches applied, never of what was
asked in between, so that two states which applied the same batches are equal to
the last bit.

Events at the time of the newest ones belong with them: none of them may see
another. So there are two memories, `base` before the batch with the newest time
and `now` after it. Both are updated in place; where more events of that time
come, `now` is made anew from `base`.
"""

from collections.abc import Mapping
import copy
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking as ranking_lib
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.growing_graph import Writes
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import Pytree
from dynllm_jax.types import SameTimeItems
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import UserEmbeddings

MAX_BATCH = 2048  # events that are embedded from one memory at most
# To which numbers of rows are padded.
SIZES = (1, 8, 64, 512, MAX_BATCH)
# Items that are embedded anew after a batch, those that it touched among them.
_FEW_REFRESHED = 16
_MORE_REFRESHED = 64  # further ones, after a batch that touched more than a few
_MAX_WRITES = 32_768  # places of a graph; where it is more, all are copied


class ItemCache(Pytree):
  """Items as they were last embedded; row n is item n + 1."""

  vector: Array  # f32[items, dim]
  text: Array | None  # f32[items, llm_dim], as ItemEmbeddings.text


class Events(NamedTuple):
  """Events in the order of their times.

  Attributes:
    users, items: i32[events], rows of the tables.
    times: i64[events], seconds since the log's first event, ascending.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray


class Saved(NamedTuple):
  """A state as it is stored.

  Attributes:
    record: numbers, by name.
    arrays: of the device or of the host, by name.
  """

  record: Mapping[str, int]
  arrays: Mapping[str, Array]


# A structure to read a stored one into; its arrays are not looked at.
_NONE = np.zeros(0)
_NO_PENDING = Pending(
  EventBatch(_NONE, _NONE, _NONE, _NONE), _NONE, _NONE, _NONE
)


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


# ------------------------------------------------------- programs on the device


@jax.jit
def _embed_events(
  bound: BoundSystem, memory: SystemMemory, batch: EventBatch
) -> Pending:
  """The events of a batch, embedded, as what waits for its update."""
  embedded = ranking_lib.embed_batch(bound, memory, batch)
  vectors = evaluate.event_vectors(embedded)
  return Pending(batch, *vectors, ready=jnp.array(True))


@functools.partial(jax.jit, static_argnums=3)
def _joined(pending: Pending, more: Pending, at: Array, size: int) -> Pending:
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
def _update(
  bound: BoundSystem, memory: SystemMemory, pending: Pending
) -> SystemMemory:
  """The memory after the pending events, its arrays shaped as before."""
  after = bound.update(memory, pending_updates.due(pending, True))
  return memory_lib.shaped_as(after, memory)


@jax.jit
def _embed_items(
  bound: BoundSystem, memory: SystemMemory, time: Array
) -> ItemCache:
  """All items, embedded at a time."""
  nobody = jnp.zeros([1], jnp.int32)
  items = jnp.arange(1, bound.inputs.num_items + 1, dtype=jnp.int32)
  _, found = bound.embed(memory, nobody, nobody + time, items, time)
  return ItemCache(found.vector, found.text)


_rank = jax.jit(ranking_lib.rank_batch)


@functools.partial(jax.jit, donate_argnums=2)
def _refresh(
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
def _write_graphs(
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


def _embed_catalogue(
  bound: BoundSystem,
  memory: SystemMemory,
  cache: ItemCache | None,
  users: Array,
  user_times: Array,
  time: Array,
) -> tuple[UserEmbeddings, ItemEmbeddings]:
  """Users against all items, which are embedded at `time` or in the cache."""
  items = jnp.arange(1, bound.inputs.num_items + 1, dtype=jnp.int32)
  embedded = bound.embed(memory, users, user_times, items, time)
  if cache is None:
    return embedded

  # Users alone are embedded with one item, since a network may prepare for the
  # number of items that it is asked for. What is aligned with the candidates
  # comes from the call with all of them, of which nothing else is computed.
  alone, _ = bound.embed(memory, users, user_times, items[:1], time)
  visitors = jax.tree.map(
    lambda one, all_items: one if one.shape == all_items.shape else all_items,
    alone,
    embedded[0],
  )
  return visitors, embedded[1].replace(vector=cache.vector, text=cache.text)


@functools.partial(jax.jit, static_argnames='k')
def _top(
  bound: BoundSystem,
  memory: SystemMemory,
  cache: ItemCache | None,
  users: Array,
  user_times: Array,
  time: Array,
  mask: Array,
  k: int,
) -> tuple[Array, Array, Array]:
  """The best items of users.

  Args:
    mask: bool[users or 1, items], which may be among them.

  Returns:
    f32[users, k] scores, -inf where there is no further item; i32[users, k]
    items; whether all scores were finite.
  """
  scores = scoring.score(
    *_embed_catalogue(bound, memory, cache, users, user_times, time)
  )
  finite = jnp.all(jnp.isfinite(scores) | ~mask)
  best, at = jax.lax.top_k(jnp.where(mask, scores, -jnp.inf), k)
  return best, at + 1, finite


@jax.jit
def _scores(
  bound: BoundSystem,
  memory: SystemMemory,
  cache: ItemCache | None,
  users: Array,
  user_times: Array,
  time: Array,
) -> Array:
  """f32[users, items], of the whole catalogue, item 1 first."""
  return scoring.score(
    *_embed_catalogue(bound, memory, cache, users, user_times, time)
  )


@functools.partial(jax.jit, static_argnames='k')
def _similar(
  vectors: Array, rows: Array, mask: Array, k: int
) -> tuple[Array, Array]:
  """Cosines of the items whose vectors are nearest; f32 and i32[items, k]."""
  lengths = jnp.linalg.norm(vectors, axis=1)
  inverse = jnp.where(lengths > 0, 1 / lengths, 0.0)
  cosines = (vectors[rows] @ vectors.T) * inverse[rows][:, None] * inverse
  best, at = jax.lax.top_k(jnp.where(mask, cosines, -jnp.inf), k)
  return best, at + 1


# -------------------------------------------------------------------- the state


class LiveState:
  """The state on the device. Its methods are not to be called at once by two.

  Attributes:
    bound: the system, its parameters and the inputs, whose graphs grow.
    newest: seconds since the log's first event, of the newest event.
    num_users, num_items: that there are; the tables may have room for more.

  Args:
    bound: with the inputs of `live_inputs`.
    memory: after all events of the graphs, what was pending applied.
    user_graph, item_graph: the events so far.
    newest: seconds, of the last of them.
    block_size: items that are scored at once, where events are ranked.
  """

  def __init__(
    self,
    bound: BoundSystem,
    memory: SystemMemory,
    user_graph: GrowingGraph,
    item_graph: GrowingGraph,
    newest: int,
    block_size: int,
  ) -> None:
    self.bound = bound
    self._block_size = block_size
    self.user_graph, self.item_graph = user_graph, item_graph
    self.newest = newest
    self.num_users = bound.inputs.num_users
    self.num_items = bound.inputs.num_items
    shapes = jax.eval_shape(functools.partial(_initial, bound.system), bound)[1]
    self._base = memory_lib.shaped_as(memory, shapes)
    self._now = jax.tree.map(jnp.copy, self._base)
    self._pending: Pending | None = None  # of the batch with the newest time
    self._num_pending = 0
    self._turn = 0  # the item that is embedded anew next
    time = np.int32(newest + 1)
    self._cache = _embed_items(self.bound, self._now, time)

  @property
  def system(self) -> System:
    return self.bound.system

  # ------------------------------------------------------------------- writing

  def first_time(self) -> int:
    """Seconds of the earliest time that a new event may have."""
    return self.newest + (self._pending is None)

  def apply(self, events: Events, ranked: bool = False) -> np.ndarray | None:
    """Takes in events, none of them earlier than `first_time`.

    Args:
      events: at least one.
      ranked: whether each event's item is ranked before.

    Returns:
      f64[events] ranks among all items (SPEC 5), if asked for; NaN where a
      score is not finite.
    """
    self._grow_graphs(events)
    plans = self._plan(events)
    ranks = []
    for planned in plans:
      chosen = slice(int(planned.start), int(planned.start + planned.size))
      batch = _event_batch(*(column[chosen] for column in events))
      joins = bool(
        planned.part > 0
        or self._pending is not None
        and events.times[planned.start] == self.newest
      )
      if not joins:
        self._close()
      if ranked:
        ranks.append(self._ranks(batch, int(planned.size)))
      self._open(batch, int(planned.size), joins)
      self.newest = int(events.times[chosen.stop - 1])

    # `now` has all that `base` has, and after one new batch no more.
    assert self._pending is not None
    if len(plans) > 1 or joins:
      self._now = jax.tree.map(jnp.copy, self._base)
    self._now = _update(self.bound, self._now, self._pending)
    self._refresh_items(events.items)
    return np.concatenate(ranks) if ranked else None

  def _plan(self, events: Events) -> list[PlannedBatch]:
    """Batches of the events; first those at the time of the open batch."""
    first = 0
    if self._pending is not None:
      first = int(np.searchsorted(events.times, self.newest, side='right'))
    spans = ((0, first), (first, len(events.times)))
    cut = (
      batching.plan_by_time
      if self.system.by_time
      else functools.partial(batching.plan_batches, batch_size=MAX_BATCH)
    )
    plans = [
      cut(events.times, start, end).batches
      for start, end in spans
      if end > start
    ]
    return [plan[row] for plan in plans for row in range(len(plan))]

  def _close(self) -> None:
    """Lets `base` catch up with the open batch."""
    if self._pending is not None:
      self._base = _update(self.bound, self._base, self._pending)
    self._pending, self._num_pending = None, 0

  def _open(self, batch: EventBatch, size: int, joins: bool) -> None:
    """Embeds a batch from `base`, and adds it to what waits."""
    pending = _embed_events(self.bound, self._base, batch)
    if joins and self._pending is not None:
      at = self._num_pending
      pending = _joined(
        self._pending, pending, np.int32(at), bucket(at + len(batch.mask))
      )
    self._pending = pending
    self._num_pending += size

  def _ranks(self, batch: EventBatch, size: int) -> np.ndarray:
    """Ranks of a batch's items among those that there are."""
    candidates = np.arange(self.bound.inputs.num_items + 1) <= self.num_items
    candidates[0] = False
    ranking = ranking_lib.Ranking(candidates, self._block_size)
    ranks, finite = _rank(self.bound, self._base, ranking, batch)
    return np.where(finite, np.asarray(ranks, np.float64)[:size], np.nan)

  def _grow_graphs(self, events: Events) -> None:
    """Adds events to both graphs."""
    users, items = events.users, events.items
    times = events.times.astype(np.int32)
    writes = (
      self.user_graph.append(users, items, times),
      self.item_graph.append(items, users, times),
    )

    # The device writes the places that changed; tables that doubled are copied.
    inputs = self.bound.inputs
    size = max(
      (len(new.places) for new in writes if new is not None),
      default=_MAX_WRITES + 1,
    )
    if None in writes or size > _MAX_WRITES:
      graphs = device_graphs(self.user_graph, self.item_graph)
    else:
      size = max(8, bucket(size))
      graphs = _write_graphs(
        (inputs.user_graph, inputs.item_graph),
        tuple(_padded(new, size) for new in writes if new is not None),
      )
    inputs = inputs.replace(user_graph=graphs[0], item_graph=graphs[1])
    self.bound = self.bound.replace(inputs=inputs)

  def _refresh_items(self, touched: np.ndarray) -> None:
    """Embeds anew the items touched, and some more in turn."""
    touched = np.unique(touched)
    size = _FEW_REFRESHED
    if len(touched) > size // 2:
      size = bucket(len(touched) + _MORE_REFRESHED)
    size = min(size, self.num_items)
    turn = 1 + (self._turn + np.arange(size)) % self.num_items
    turn = turn[~np.isin(turn, touched)][: max(0, size - len(touched))]
    if len(turn):
      self._turn = int(turn[-1]) % self.num_items
    self._embed_into_cache(np.concatenate([touched, turn]))

  def _embed_into_cache(self, items: np.ndarray) -> None:
    """Embeds items anew as they are after the newest event."""
    few = len(items) <= _FEW_REFRESHED
    size = _FEW_REFRESHED if few else bucket(len(items))
    self._cache = _refresh(
      self.bound,
      self._now,
      self._cache,
      pad_rows(items, size),
      np.int32(self.newest + 1),
    )

  # ------------------------------------------------------------------- growing

  def set_texts(self, items: np.ndarray, vectors: np.ndarray) -> None:
    """Sets the embeddings of items' texts.

    Args:
      items: i32[items], rows.
      vectors: f16[items, llm_dim].
    """
    inputs = self.bound.inputs
    size = bucket(len(items))
    rows = pad_rows(items, size, sharded_table.NO_ROW)
    padded = np.pad(vectors, [(0, size - len(vectors)), (0, 0)])
    table = _write_rows(inputs.item_text, rows, padded)
    self.bound = self.bound.replace(inputs=inputs.replace(item_text=table))
    self._embed_into_cache(np.asarray(items))

  def add_nodes(self, num_users: int, num_items: int) -> None:
    """Lets there be so many users and items; tables that are full double.

    Their parameters by id, where a system has any, are drawn as before
    training; their memory is that of a node without an event.
    """
    inputs = self.bound.inputs
    users, items = inputs.num_users, inputs.num_items
    while users < num_users:
      users *= 2
    while items < num_items:
      items *= 2
    self.num_users, self.num_items = num_users, num_items
    if (users, items) == (inputs.num_users, inputs.num_items):
      return

    self.user_graph.add_nodes(users)
    self.item_graph.add_nodes(items)
    graphs = device_graphs(self.user_graph, self.item_graph)
    more = users - inputs.num_users
    self.bound = self.bound.replace(
      inputs=inputs.replace(
        user_graph=graphs[0],
        item_graph=graphs[1],
        item_text=_grown(
          jnp.zeros([items + 1, inputs.item_text.shape[1]], jnp.float16),
          inputs.item_text,
        ),
        facets=inputs.facets.replace(
          offsets=jnp.pad(inputs.facets.offsets, (0, more), 'edge')
        ),
        num_users=users,
        num_items=items,
      )
    )
    params, memory = jax.jit(functools.partial(_initial, self.system))(
      self.bound
    )
    grow = functools.partial(jax.tree.map, _grown)
    self.bound = self.bound.replace(params=grow(params, self.bound.params))
    self._base, self._now = grow(memory, self._base), grow(memory, self._now)
    more = items - len(self._cache.vector)
    self._cache = jax.tree.map(
      lambda x: jnp.pad(x, [(0, more), (0, 0)]), self._cache
    )

  def forked(self) -> 'LiveState':
    """A copy that takes in events of its own, and leaves this state alone."""
    fork = copy.copy(self)
    fork.user_graph = GrowingGraph.from_arrays(self.user_graph.arrays())
    fork.item_graph = GrowingGraph.from_arrays(self.item_graph.arrays())
    inputs = self.bound.inputs
    own = lambda tree: jax.tree.map(jnp.copy, tree)
    fork.bound = self.bound.replace(
      inputs=inputs.replace(
        user_graph=own(inputs.user_graph), item_graph=own(inputs.item_graph)
      )
    )
    fork._base, fork._now = own(self._base), own(self._now)
    fork._cache = own(self._cache)
    return fork

  # ------------------------------------------------------------------- reading

  def memory_at(self, time: int) -> SystemMemory:
    """The memory that holds what is strictly earlier; `newest` or later."""
    return self._base if time <= self.newest else self._now

  def top(
    self, users: np.ndarray, mask: np.ndarray, k: int, time: int | None = None
  ) -> tuple[Array, Array, Array]:
    """The best items of each user.

    Args:
      users: i32[users], 0 for one who is not known.
      mask: bool[users or 1, num_items], which items may be among them.
      k: how many.
      time: seconds, at which users and all items are embedded; None: just
        after the newest event, items as they were last embedded.

    Returns:
      As `_top`, still being computed; rows and columns of padding may follow.
    """
    at = self.newest + 1 if time is None else time
    size = bucket(len(users))
    width = self.bound.inputs.num_items
    mask = np.pad(mask, [(0, 0), (0, width - mask.shape[1])])
    if len(mask) > 1:
      mask = np.pad(mask, [(0, size - len(users)), (0, 0)])
    return _top(
      self.bound,
      self.memory_at(at),
      self._cache if time is None else None,
      pad_rows(users, size),
      np.full([size], at, np.int32),
      np.int32(at),
      mask,
      min(bucket(max(k, 8)), width),
    )

  def scores(self, users: np.ndarray, time: int | None) -> Array:
    """f32[users or more, items or more] scores; arguments as those of `top`."""
    at = self.newest + 1 if time is None else time
    size = bucket(len(users))
    return _scores(
      self.bound,
      self.memory_at(at),
      self._cache if time is None else None,
      pad_rows(users, size),
      np.full([size], at, np.int32),
      np.int32(at),
    )

  def cached_vector(self, item: int) -> Array:
    """f32[dim], an item as it was last embedded."""
    return self._cache.vector[item - 1]

  def similar(self, items: np.ndarray, k: int) -> tuple[Array, Array]:
    """Items of nearest vectors, the item itself left out.

    Args:
      items: i32[items], rows.
      k: how many.

    Returns:
      f32 cosines and i32 items, of at least [items, k]; -inf where there is no
      further item.
    """
    size, width = bucket(len(items)), self.bound.inputs.num_items
    rows = pad_rows(items, size, 1) - 1
    place = np.arange(width)
    mask = (place < self.num_items) & (place != rows[:, None])
    k = min(bucket(max(k, 8)), width)
    return _similar(self._cache.vector, rows, mask, k)

  # ------------------------------------------------------------------ storing

  def saved(self) -> Saved:
    """All that batches have made of the state, copied.

    What the device has is copied there; it comes to the host when it is read.
    """
    inputs = self.bound.inputs
    graphs: dict[str, Array] = {
      f'{name}.{column}': values
      for name, graph in self._graphs().items()
      for column, values in graph.arrays().items()
    }
    on_device = jax.tree.map(jnp.copy, self._tree(self._pending))
    return Saved(
      record={
        'newest': self.newest,
        'num_users': self.num_users,
        'num_items': self.num_items,
        'user_rows': inputs.num_users,
        'item_rows': inputs.num_items,
        'pending': self._num_pending,
        'turn': self._turn,
      },
      arrays=graphs | dict(_named_leaves(on_device)),
    )

  def load(self, saved: Saved) -> None:
    """Becomes the state that was saved.

    Args:
      saved: of a state of the same run.

    Raises:
      KeyError: if something is missing; nothing is changed then.
    """
    record, arrays = saved
    graphs = [
      GrowingGraph.from_arrays(
        {
          column.removeprefix(f'{name}.'): np.array(values)
          for column, values in arrays.items()
          if column.startswith(f'{name}.')
        }
      )
      for name in self._graphs()
    ]
    pending = _NO_PENDING if record['pending'] else None
    wanted = self._tree(pending)
    leaves = [jnp.array(arrays[name]) for name, _ in _named_leaves(wanted)]
    tree = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
    numbers = {name: int(record[name]) for name in record}

    inputs = self.bound.inputs
    on_device = device_graphs(*graphs)
    self.user_graph, self.item_graph = graphs
    self.bound = self.bound.replace(
      params=tree['params'],
      inputs=inputs.replace(
        user_graph=on_device[0],
        item_graph=on_device[1],
        item_text=tree['item_text'],
        facets=inputs.facets.replace(offsets=tree['facet_offsets']),
        num_users=numbers['user_rows'],
        num_items=numbers['item_rows'],
      ),
    )
    self._base, self._now = tree['base'], tree['now']
    self._cache, self._pending = tree['cache'], tree['pending']
    self._num_pending, self._turn = numbers['pending'], numbers['turn']
    self.newest = numbers['newest']
    self.num_users, self.num_items = numbers['num_users'], numbers['num_items']

  def _graphs(self) -> dict[str, GrowingGraph]:
    return {'user_graph': self.user_graph, 'item_graph': self.item_graph}

  def _tree(self, pending: Pending | None) -> dict[str, Any]:
    """All arrays on the device that batches change, graphs left out."""
    inputs = self.bound.inputs
    return {
      'params': self.bound.params,
      'item_text': inputs.item_text,
      'facet_offsets': inputs.facets.offsets,
      'base': self._base,
      'now': self._now,
      'cache': self._cache,
      'pending': pending,
    }


def _named_leaves(tree: Any) -> list[tuple[str, Array]]:
  """The arrays of a pytree with their full names, such as `base.user.state`."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='.'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def live_inputs(
  inputs: Inputs, user_graph: GrowingGraph, item_graph: GrowingGraph
) -> Inputs:
  """The inputs of a run, with graphs that grow and without its log.

  Args:
    inputs: on the device.
    user_graph, item_graph: the events so far.
  """
  graphs = device_graphs(user_graph, item_graph)
  nothing = lambda: jnp.zeros([1], jnp.int32)
  return inputs.replace(
    users=nothing(),
    items=nothing(),
    times=nothing(),
    user_graph=graphs[0],
    item_graph=graphs[1],
    same_time=SameTimeItems(jnp.zeros([2], jnp.int32), nothing(), nothing(), 1),
  )


def device_graphs(*graphs: GrowingGraph) -> tuple[TemporalGraph, ...]:
  """The graphs, copied to the device."""
  return jax.tree.map(
    jnp.array, tuple(graph.device_graph() for graph in graphs)
  )


def _initial(system: System, bound: BoundSystem) -> tuple[Params, SystemMemory]:
  """Parameters and memory before training, of as many nodes as the inputs."""
  inputs = bound.inputs
  key = jax.random.key(inputs.num_users + inputs.num_items)
  params, memory = system.init(key, inputs, 1)
  memory = system.reset(memory)
  return params, bound.replace(params=params).propagate(memory)


def _grown(wanted: Array, old: Array) -> Array:
  """A table with the old rows and columns first."""
  if wanted.shape == old.shape:
    return old
  corner = tuple(slice(0, length) for length in old.shape)
  return jnp.asarray(wanted).at[corner].set(old)


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(table: Array, rows: Array, values: Array) -> Array:
  return jnp.asarray(table).at[rows].set(values, mode='drop')


def _padded(writes: Writes, size: int) -> Writes:
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


def _event_batch(
  users: np.ndarray, items: np.ndarray, times: np.ndarray
) -> EventBatch:
  """A batch as `batching.slice_batch` reads one from a log."""
  size = bucket(len(users))
  return EventBatch(
    users=pad_rows(users, size),
    items=pad_rows(items, size),
    times=pad_rows(times, size, times[0]),
    mask=np.arange(size) < len(users),
  )
