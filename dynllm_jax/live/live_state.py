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
from dynllm_jax.engine import ranking as ranking_lib
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import successors
from dynllm_jax.live import programs
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.programs import ItemCache
from dynllm_jax.live.withheld_facets import WithheldFacets
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
from dynllm_jax.types import Successors
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import UserEmbeddings

# Items that are embedded anew after a batch, those that it touched among them.
_FEW_REFRESHED = 16
_MORE_REFRESHED = 64  # further ones, after a batch that touched more than a few
_LEAST_ROOM = 64  # rows for newcomers
_LEAST_BEST = 64  # items of an answer, to which fewer are padded


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


class Tables(Pytree):
  """What batches change on the device, graphs, parameters and texts apart.

  Attributes:
    base: the memory before the batch with the newest time.
    now: after it.
    cache: items as they were last embedded.
    pending: that batch; None where no batch has come since the log.
  """

  base: SystemMemory
  now: SystemMemory
  cache: ItemCache
  pending: Pending | None


Graphs = tuple[GrowingGraph, GrowingGraph]  # of users, of items

# A structure to read a stored one into; its arrays are not looked at.
_NONE = np.zeros(0)
_NO_PENDING = Pending(
  EventBatch(_NONE, _NONE, _NONE, _NONE), _NONE, _NONE, _NONE
)


# -------------------------------------------------------------------- the state


class LiveState:
  """The state on the device. Its methods are not to be called at once by two.

  Made by `begun` or `from_saved`.

  Attributes:
    bound: the system, its parameters and the inputs, whose graphs grow.
    newest: seconds since the log's first event, of the newest event.
    num_users, num_items: that there are; the tables may have room for more.

  Args:
    bound: with the inputs of `live_inputs`.
    graphs: the events so far.
    tables: after them.
    record: numbers of the state, as those of `saved`.
    ranking: how events are ranked; its candidates are not looked at.
  """

  def __init__(
    self,
    bound: BoundSystem,
    graphs: Graphs,
    tables: Tables,
    record: Mapping[str, int],
    ranking: ranking_lib.Ranking,
  ) -> None:
    self.bound, tables = programs.placed((bound, tables))
    self.user_graph, self.item_graph = graphs
    self._base, self._now = tables.base, tables.now
    self._cache, self._pending = tables.cache, tables.pending
    self.newest = int(record['newest'])
    self.num_users = int(record['num_users'])
    self.num_items = int(record['num_items'])
    self._num_pending = int(record['pending'])
    self._turn = int(record['turn'])  # the item that is embedded anew next
    self._ranking = ranking
    self._withheld: WithheldFacets | None = None

  @classmethod
  def begun(
    cls,
    bound: BoundSystem,
    memory: SystemMemory,
    graphs: Graphs,
    newest: int,
    ranking: ranking_lib.Ranking,
  ) -> 'LiveState':
    """The state of a run, before anything is observed.

    Args:
      bound: with the inputs of `live_inputs`.
      memory: after all events of the graphs, what was pending applied.
      graphs: the events so far.
      newest: seconds, of the last of them.
      ranking: how events are ranked; its candidates are not looked at.
    """
    first = functools.partial(_initial, bound.system)
    shapes = jax.eval_shape(first, bound.inputs)[1]
    base = memory_lib.shaped_as(memory, shapes)
    now = jax.tree.map(jnp.copy, base)
    cache = programs.embed_items(bound, now, np.int32(newest + 1))
    record = {
      'newest': newest,
      'num_users': bound.inputs.num_users,
      'num_items': bound.inputs.num_items,
      'pending': 0,
      'turn': 0,
    }
    return cls(bound, graphs, Tables(base, now, cache, None), record, ranking)

  @classmethod
  def from_saved(
    cls,
    system: System,
    inputs: Inputs,
    saved: Saved,
    ranking: ranking_lib.Ranking,
  ) -> 'LiveState':
    """The state that was saved; nothing is compiled or replayed for it.

    Args:
      system: that of the run.
      inputs: of the run, as made of its log.
      saved: of a state of the same run.
      ranking: how events are ranked; its candidates are not looked at.

    Raises:
      KeyError: if something is missing.
    """
    record, arrays = saved
    first = functools.partial(_initial, system)
    of_run = jax.eval_shape(first, inputs)[1]
    users, items = (
      GrowingGraph.from_arrays(
        {
          column.removeprefix(f'{name}.'): np.array(values)
          for column, values in arrays.items()
          if column.startswith(f'{name}.')
        }
      )
      for name in _GRAPHS
    )
    inputs = live_inputs(inputs, users, items).replace(
      item_text=jnp.array(arrays['item_text']),
      facets=inputs.facets.replace(offsets=jnp.array(arrays['facet_offsets'])),
      num_users=int(record['user_rows']),
      num_items=int(record['item_rows']),
    )

    # Names of arrays, and what is made of them.
    params, memory = jax.eval_shape(first, inputs)
    memory = jax.eval_shape(_grown_memory, memory, of_run)
    text = _NONE if 'cache.text' in arrays else None
    pending = _NO_PENDING if record['pending'] else None
    wanted = _tree(
      params, Tables(memory, memory, ItemCache(_NONE, text), pending)
    )
    leaves = [jnp.array(arrays[name]) for name, _ in _named_leaves(wanted)]
    tree = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
    return cls(
      BoundSystem(system, tree.pop('params'), inputs),
      (users, items),
      Tables(**tree),
      record,
      ranking,
    )

  def withhold(self, facets: WithheldFacets) -> None:
    """Withholds facets until what they rest on has been observed."""
    inputs = self.bound.inputs
    self.bound = self.bound.replace(
      inputs=inputs.replace(facets=facets.withhold(inputs.facets))
    )
    self._withheld = facets

  @property
  def system(self) -> System:
    return self.bound.system

  @property
  def has_vectors(self) -> bool:
    """Whether items have vectors; those of a system that counts are zero."""
    vector = self._cache.vector
    return vector.shape[1] > 1 or bool(jnp.any(vector != 0))

  @property
  def pending(self) -> Pending | None:
    """The events of the newest time, which no other of that time sees."""
    return self._pending

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
    self._now = programs.update(self.bound, self._now, self._pending)
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
      else functools.partial(
        batching.plan_batches, batch_size=programs.MAX_BATCH
      )
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
      self._base = programs.update(self.bound, self._base, self._pending)
    self._pending, self._num_pending = None, 0

  def _open(self, batch: EventBatch, size: int, joins: bool) -> None:
    """Embeds a batch from `base`, and adds it to what waits."""
    pending = programs.embed_events(self.bound, self._base, batch)
    if joins and self._pending is not None:
      at = self._num_pending
      pending = programs.joined(
        self._pending,
        pending,
        np.int32(at),
        max(
          len(self._pending.user_vectors), programs.bucket(at + len(batch.mask))
        ),
      )
    self._pending = pending
    self._num_pending += size

  def _ranks(self, batch: EventBatch, size: int) -> np.ndarray:
    """Ranks of a batch's items among those that there are."""
    candidates = np.arange(self.bound.inputs.num_items + 1) <= self.num_items
    candidates[0] = False
    ranking = self._ranking.replace(candidates=candidates)
    ranks, finite = programs.rank(self.bound, self._base, ranking, batch)
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
      default=programs.MAX_WRITES + 1,
    )
    if None in writes or size > programs.MAX_WRITES:
      graphs = device_graphs(self.user_graph, self.item_graph)
    else:
      size = max(8, programs.bucket(size))
      graphs = programs.write_graphs(
        (inputs.user_graph, inputs.item_graph),
        tuple(
          programs.padded_writes(new, size) for new in writes if new is not None
        ),
      )
    inputs = inputs.replace(user_graph=graphs[0], item_graph=graphs[1])
    if self._withheld is not None:
      inputs = inputs.replace(
        facets=self._withheld.released(inputs.facets, users, self.user_graph)
      )
    self.bound = self.bound.replace(inputs=inputs)

  def _refresh_items(self, touched: np.ndarray) -> None:
    """Embeds anew the items touched, and some more in turn."""
    touched = np.unique(touched)
    size = _FEW_REFRESHED
    if len(touched) > size // 2:
      size = programs.bucket(len(touched) + _MORE_REFRESHED)
    size = min(size, self.num_items)
    turn = 1 + (self._turn + np.arange(size)) % self.num_items
    turn = turn[~np.isin(turn, touched)][: max(0, size - len(touched))]
    if len(turn):
      self._turn = int(turn[-1]) % self.num_items
    self._embed_into_cache(np.concatenate([touched, turn]))

  def _embed_into_cache(self, items: np.ndarray) -> None:
    """Embeds items anew as they are after the newest event."""
    few = len(items) <= _FEW_REFRESHED
    for start in range(0, len(items), programs.MAX_BATCH):
      part = items[start : start + programs.MAX_BATCH]
      size = _FEW_REFRESHED if few else programs.bucket(len(part))
      self._cache = programs.refresh(
        self.bound,
        self._now,
        self._cache,
        programs.pad_rows(part, size),
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
    size = programs.bucket(len(items))
    rows = programs.pad_rows(items, size, sharded_table.NO_ROW)
    padded = np.pad(vectors, [(0, size - len(vectors)), (0, 0)])
    table = programs.write_rows(inputs.item_text, rows, padded)
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
    if (users, items) != (inputs.num_users, inputs.num_items):
      self._resize(users, items)

  def make_room(self) -> None:
    """Lets tables have a few rows more, so that the first newcomers find room.

    A system that has no newcomers needs none.
    """
    if self.system.feed != 'shuffled':
      more = lambda count: count + max(_LEAST_ROOM, count // 8)
      inputs = self.bound.inputs
      self._resize(more(inputs.num_users), more(inputs.num_items))

  def _resize(self, users: int, items: int) -> None:
    """Lets tables have so many rows; those that are new are of nobody."""
    inputs = self.bound.inputs
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

    params, memory = _initial(self.system, self.bound.inputs)
    params = jax.tree.map(_grown, params, self.bound.params)
    self.bound = self.bound.replace(params=params)
    self._base = _grown_memory(memory, self._base)
    self._now = _grown_memory(memory, self._now)
    more = items - len(self._cache.vector)
    self._cache = jax.tree.map(
      lambda x: jnp.pad(x, [(0, more), (0, 0)]), self._cache
    )

  def forked(self, texts: bool = False) -> 'LiveState':
    """A copy that takes in events of its own, and leaves this state alone.

    Args:
      texts: whether the items' texts are copied too. If not, a batch that
        brings new ones, here or there, takes them away from the other.
    """
    fork = copy.copy(self)
    fork.user_graph = GrowingGraph.from_arrays(self.user_graph.arrays())
    fork.item_graph = GrowingGraph.from_arrays(self.item_graph.arrays())
    inputs = self.bound.inputs
    own = lambda tree: jax.tree.map(jnp.copy, tree)
    fork.bound = self.bound.replace(
      inputs=inputs.replace(
        user_graph=own(inputs.user_graph),
        item_graph=own(inputs.item_graph),
        item_text=own(inputs.item_text) if texts else inputs.item_text,
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
      As `programs.best`, still being computed; rows and columns of padding may
      follow.
    """
    visitors, items = self._meet(users, time)
    size, width = len(visitors.vector), len(items.vector)
    allowed = np.zeros([size, width], bool)
    allowed[: len(users), : mask.shape[1]] = mask
    k = min(programs.bucket(max(k, _LEAST_BEST)), width)
    return programs.best(visitors, items, allowed, k)

  def scores(self, users: np.ndarray, time: int | None) -> Array:
    """f32[users or more, items or more] scores; arguments as those of `top`."""
    return programs.scores(*self._meet(users, time))

  def _meet(
    self, users: np.ndarray, time: int | None
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """Users and the catalogue, to be scored; arguments as those of `top`."""
    at = self.newest + 1 if time is None else time
    size = programs.bucket(len(users))
    asked = (
      self.bound,
      self.memory_at(at),
      programs.pad_rows(users, size),
      np.full([size], at, np.int32),
      np.int32(at),
    )
    if time is not None:
      return programs.embed_all(*asked)
    visitors, ids, column = programs.embed_visitors(*asked)
    cache = self._cache
    return visitors, ItemEmbeddings(ids, cache.vector, cache.text, column)

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
    size, width = programs.bucket(len(items)), self.bound.inputs.num_items
    rows = programs.pad_rows(items, size, 1) - 1
    place = np.arange(width)
    mask = (place < self.num_items) & (place != rows[:, None])
    k = min(programs.bucket(max(k, _LEAST_BEST)), width)
    return programs.similar(self._cache.vector, rows, mask, k)

  # ------------------------------------------------------------------ storing

  def saved(self) -> Saved:
    """All that batches have made of the state, copied.

    What the device has is copied there; it comes to the host when it is read.
    """
    inputs = self.bound.inputs
    graphs: dict[str, Array] = {
      f'{name}.{column}': values
      for name in _GRAPHS
      for column, values in getattr(self, name).arrays().items()
    }

    tables = Tables(self._base, self._now, self._cache, self._pending)
    on_device = {
      **_tree(self.bound.params, tables),
      'item_text': inputs.item_text,
      'facet_offsets': inputs.facets.offsets,
    }
    copied = jax.tree.map(jnp.copy, on_device)
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
      arrays=graphs | dict(_named_leaves(copied)),
    )


_GRAPHS = ('user_graph', 'item_graph')


def _tree(params: Params, tables: Tables) -> dict[str, Any]:
  """What is stored of a state by the names of its parts."""
  return {
    'params': params,
    'base': tables.base,
    'now': tables.now,
    'cache': tables.cache,
    'pending': tables.pending,
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
  copies = tuple(graph.device_graph() for graph in graphs)
  return programs.placed(jax.tree.map(jnp.array, copies))


@functools.partial(jax.jit, static_argnums=0)
def _initial(system: System, inputs: Inputs) -> tuple[Params, SystemMemory]:
  """Parameters and memory before training, of as many nodes as the inputs."""
  key = jax.random.key(inputs.num_users + inputs.num_items)
  params, memory = system.init(key, inputs, 1)
  memory = system.reset(memory)
  return params, BoundSystem(system, params, inputs).propagate(memory)


def _grown_memory(wanted: SystemMemory, old: SystemMemory) -> SystemMemory:
  """The state with the old rows first, and counts as they were kept."""

  def grow(wanted: Any, old: Any) -> Any:
    if isinstance(old, Successors):
      return successors.grown(old, len(wanted.totals) - 1)
    return _grown(wanted, old)

  return jax.tree.map(
    grow, wanted, old, is_leaf=lambda x: isinstance(x, Successors)
  )


def _grown(wanted: Array, old: Array) -> Array:
  """A table with the old rows and columns first."""
  if wanted.shape == old.shape:
    return old
  corner = tuple(slice(0, length) for length in old.shape)
  return jnp.asarray(wanted).at[corner].set(old)


def _event_batch(
  users: np.ndarray, items: np.ndarray, times: np.ndarray
) -> EventBatch:
  """A batch as `batching.slice_batch` reads one from a log."""
  size = programs.bucket(len(users))
  return EventBatch(
    users=programs.pad_rows(users, size),
    items=programs.pad_rows(items, size),
    times=programs.pad_rows(times, size, times[0]),
    mask=np.arange(size) < len(users),
  )
