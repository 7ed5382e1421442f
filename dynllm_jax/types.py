"""The data that flows through the system: host records and device pytrees.

Host records hold numpy arrays and strings and never enter a jitted function.
Device records are pytrees of arrays. Row 0 of every table that is indexed by
a user or an item is padding and is never written; real ids start at 1. Times
are integer seconds since the log's first event; a difference is taken in
integers and only then turned into days (SPEC 2.1).
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import dataclass_transform
from typing import NamedTuple
from typing import Self

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Any  # A pytree of arrays.
SystemMemory = Any  # A pytree of arrays, of the system's own making.

FACETS = ('crd', 'int', 'ctg', 'brd')
SECONDS_PER_DAY = 86_400


class InputError(ValueError):
  """Bad input; the text names field, value, place and what is allowed."""


class TooLargeError(InputError):
  """A system whose tables exceed the limit that its configuration sets."""


def static_field(**options: Any) -> Any:
  """A field that is part of the pytree's structure, known to the compiler.

  Args:
    **options: of `dataclasses.field`, such as `default`.
  """
  return dataclasses.field(metadata={'static': True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static_field,))
class Pytree:
  """Makes a subclass a frozen dataclass whose fields are a pytree's children.

  Fields made by `static_field` are part of the structure instead.
  """

  def __init_subclass__(cls) -> None:
    super().__init_subclass__()
    dataclasses.dataclass(frozen=True)(cls)
    jax.tree_util.register_dataclass(cls)

  def replace(self, **changes: Any) -> Self:
    """A copy with other values of some fields."""
    return dataclasses.replace(self, **changes)  # type: ignore[type-var]


# ------------------------------------------------------------- host records


@dataclasses.dataclass(frozen=True)
class RawLog:
  """A log as a source reads it, before filtering and numbering.

  Attributes:
    users, items: str[events], the ids as they stand in the source.
    times: i64[events], unix seconds.
    item_ids, titles, categories, brands: str[table], the item table; an item
      of `items` may be missing here, and a text may be empty.
    counts: what reading kept and dropped, by reason, in the order of the rules.
    source: what was read, in words, for reports.
    simulated: whether the log was made by a program.
    fractions: i64[events], nanoseconds since the second of each event; None
      where the source has whole seconds.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  item_ids: np.ndarray
  titles: np.ndarray
  categories: np.ndarray
  brands: np.ndarray
  counts: dict[str, int]
  source: str
  simulated: bool = False
  fractions: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EventLog:
  """A prepared log: filtered, numbered, sorted by time, split (SPEC 2).

  Attributes:
    users: i32[events], in 1..num_users.
    items: i32[events], in 1..num_items.
    times: i64[events], seconds since the first event, ascending; among equal
      times that of their fractions, then that of the file.
    user_ids: str[num_users + 1]; `user_ids[0]` is '' (padding).
    item_ids, titles, categories, brands: str[num_items + 1]; row 0 is ''.
    train_end, validation_end: event positions where training and validation
      end; neither lies inside a group of equal times.
    start_time: unix seconds of the first event.
    counts: rows read, dropped and kept, by reason.
    source: what was read, in words.
    simulated: whether the log was made by a program.
    fingerprint: a hash of source content and preparation.
  """

  users: np.ndarray
  items: np.ndarray
  times: np.ndarray
  user_ids: np.ndarray
  item_ids: np.ndarray
  titles: np.ndarray
  categories: np.ndarray
  brands: np.ndarray
  train_end: int
  validation_end: int
  start_time: int
  counts: dict[str, int]
  source: str
  simulated: bool
  fingerprint: str

  @property
  def num_events(self) -> int:
    return len(self.users)

  @property
  def num_users(self) -> int:
    return len(self.user_ids) - 1

  @property
  def num_items(self) -> int:
    return len(self.item_ids) - 1


# ----------------------------------------------------------- device pytrees


class OwnLimits(NamedTuple):
  """How much of any update of a plan falls to one device; hashable.

  See parallel/owners.py. 0: not known, so that there is room for all.
  """

  events: int = 0  # of nodes that one device owns, at most
  sent: int = 0  # from one device to another, at most


ROOM_FOR_ALL = OwnLimits()


class EventBatch(Pytree):
  """Events of the log. Padding rows have `mask` False and ids 0.

  With feed 'sequences' every field is [batch, sequence_length].
  """

  users: Array  # i32[batch]
  items: Array  # i32[batch]
  times: Array  # i32[batch], seconds
  mask: Array  # bool[batch]
  limits: OwnLimits = static_field(default=ROOM_FOR_ALL)  # of an update


class PlannedBatch(Pytree):
  """Where one batch of a plan lies in the log.

  A group of equal times that is larger than a batch is cut into parts; updates
  follow the last one, which is `ready`. The batches of a whole plan are one
  `PlannedBatch` of columns [batches]: an index gives a batch, a slice several.
  """

  start: Array  # i32[], position in the log
  size: Array  # i32[], number of events; a batch of none changes nothing
  part: Array  # i32[], number of the part within its group of equal times
  ready: Array  # bool[], whether it is the last part of its group

  def __len__(self) -> int:
    return len(self.start)

  def __getitem__(self, index: int | slice) -> 'PlannedBatch':
    return jax.tree.map(lambda column: column[index], self)


class Neighborhood(Pytree):
  """The most recent neighbors first; padding has `mask` False, node 0."""

  nodes: Array  # i32[..., neighbors]
  times: Array  # i32[..., neighbors], seconds
  mask: Array  # bool[..., neighbors]


class TemporalGraph(Pytree):
  """Temporal CSR of one side: a node's events, oldest first (temporal.py).

  A graph that grows (live/growing_graph.py) leaves room behind its rows and
  says where each ends.
  """

  offsets: Array  # i32[nodes + 1], node 0 (padding) has an empty row
  neighbors: Array  # i32[events]
  times: Array  # i32[events], seconds, ascending within a row
  longest: int = static_field()  # events of the busiest node, or more
  ends: Array | None = None  # i32[nodes]; None: where the next row begins


class SameTimeItems(Pytree):
  """For each event, the distinct items its user takes at that very time."""

  offsets: Array  # i32[groups + 1]
  items: Array  # i32[distinct], ascending within a group
  group: Array  # i32[events]
  longest: int = static_field()  # items of the largest group


class TrainGraph(Pytree):
  """Who took what in training, as one symmetric graph over all nodes.

  Node `u` is user u and node `users + 1 + i` item i, so that the node table
  is the users' table followed by the items'; rows 0 and `users + 1` are their
  padding. An edge joins the two nodes of a distinct (user, item) pair; how
  often the pair occurs is not kept. A node's neighbors are laid out as a tree
  for kernels/propagation.py: rows of `levels[0]` name nodes, rows of a later
  level name rows of the level before, and row n of the last level is node n.
  A place of value 0 is empty.
  """

  levels: tuple[Array, ...]  # i32[rows, fan in]
  owners: Array  # i32[rows of levels[0]], the node whose neighbors a row holds
  degrees: Array  # f32[users + items + 2]


class FacetBank(Pytree):
  """The four facets of every user and active window (SPEC 3.6).

  `texts[0]` stands for "unknown" and is never read as an embedding. Where
  `texts` holds only some of all texts, `present` says which
  (engine/resident_texts.py).
  """

  texts: Array  # f16[unique_texts, llm_dim]
  offsets: Array  # i32[users + 2], rows of user u: offsets[u]..offsets[u + 1]
  closes: Array  # i32[rows], seconds, ascending within a user
  index: Array  # i32[rows, 4], rows of all texts, in the order of FACETS
  longest: int = static_field()  # rows of the user with most, or more
  present: Array | None = None  # i32[texts here], ascending; None: all


class QueryRows(Pytree):
  """Items as their layer's queries, whatever the time (SPEC 5.5)."""

  own: Array  # f32[items, dim], as keys of KeyRows see them
  by_code: Array  # f32[items, heads, time_dim], as time codes see them
  merged: Array  # f32[items, dim], what the perceptron adds up of them


class KeyRows(Pytree):
  """Users as neighbors in the same layer."""

  key: Array  # f32[users, dim]
  value: Array  # f32[users, dim]


class NodeTables(Pytree):
  """What the items' layer makes of every node's state alone (SPEC 5.5)."""

  item: QueryRows  # rows as those of the items' memory
  user: KeyRows  # the same


class Inputs(Pytree):
  """The fixed data that a system may read.

  The graphs hold the events of all splits: a reader asks for what is strictly
  earlier than a time. `train_*` hold training events only. Tables that several
  devices share are read through sharded_table.py; padding may follow their
  last row.
  """

  users: Array  # i32[events], the log
  items: Array  # i32[events]
  times: Array  # i32[events], seconds
  user_graph: TemporalGraph  # a user's items
  item_graph: TemporalGraph  # an item's users
  same_time: SameTimeItems
  train_events: Array  # i32[], number of training events
  mean_return_days: Array  # f32[], mu of SPEC 3.4
  item_text: Array  # f16[items + 1 or more, llm_dim]
  text_mean: Array  # f32[llm_dim], of the texts of training's items
  facets: FacetBank
  num_users: int = static_field()  # padding not counted, here and below
  num_items: int = static_field()
  train_graph: TrainGraph | None = None  # where System.reads_train_graph
  # i32[events], the last item in order of appearance that has been sold by an
  # event's time; where train.negatives is 'sold'.
  sold: Array | None = None
  # f32[llm_dim, llm_dim], after which texts of training's items have unit
  # covariance; where model.text_whitening
  text_whitening: Array | None = None
  # f32[items + 1 or more, width] of System.map_texts; None: mapped where read
  mapped_texts: Array | None = None
  # Of the memory that is read; None: computed where needed
  tables: NodeTables | None = None


class NodeMemory(Pytree):
  """One side's memory (SPEC 3.3) with a sparse set of freshly written rows.

  `fresh` are the rows that the latest update wrote, before gradients were
  stopped: a gradient reaches the update through them alone, so that its cost
  follows the batch and never the number of nodes. `slot[n]` is node n's row
  in `fresh` if `fresh_nodes[slot[n]] == n`, and stale otherwise.
  """

  state: Array  # f32[nodes + 1, width], or f16 (config.model.memory_dtype)
  time: Array  # i32[nodes + 1], seconds of the last event, -1 without one
  fresh: Array  # f32[capacity, width]
  fresh_nodes: Array  # i32[capacity], 0 where unused
  slot: Array  # i32[nodes + 1]


class Recency(Pytree):
  """How much each item is taken these days, and since when (recency.py).

  Values are `sum 0.5^((t - t_k) / half-life)`, each as of its own time: one is
  decayed only when it is read or written.
  """

  value: Array  # f32[items + 1, half-lives]
  time: Array  # i32[items + 1], seconds, of the item's latest event
  first: Array  # i32[items + 1], seconds, of its first; -1 without one
  most: Array  # f32[half-lives], the highest of all items
  most_time: Array  # i32[], seconds, as of which it is the highest


class Successors(Pytree):
  """What followed each item, and how often (successors.py)."""

  counts: Array  # f32[items + 1, kept]; of a table f32[items + 1, items + 1]
  totals: Array  # f32[items + 1], of all successors, also those given up
  # None of a table, which keeps all of them.
  items: Array | None = None  # i32[items + 1, kept], 0 where a place is free
  arrivals: Array | None = None  # i32[items + 1], given a place so far


class Counts(Pytree):
  """What the count terms of SPEC 3.12 know of all events so far."""

  recency: Recency
  successors: Successors


class Memory(Pytree):
  """Node memories of both sides."""

  user: NodeMemory
  item: NodeMemory | None  # None where items have no state
  counts: Counts | None = None  # where the score has count terms


class Terms(Pytree):
  """Sparse additions to a user's scores: `weights` on `items` (0: none)."""

  items: Array  # i32[batch, terms]
  weights: Array  # f32[batch, terms]


class UserEmbeddings(Pytree):
  """What a system knows of each user at each user's time.

  The score of item x is (SPEC 3.9, 3.11; scoring.py)
  `scale vector . x + text . text of x + sum copy + walk_scale log(1 + sum walk)
  + item_scores[x] + counts[column of x]`; an absent part is None.
  """

  vector: Array  # f32[batch, dim]
  scale: Array | None = None  # f32[], c of SPEC 3.9
  text: Array | None = None  # f32[batch, llm_dim], of layers/text_term.py
  copy: Terms | None = None
  walk: Terms | None = None
  walk_scale: Array | None = None  # f32[], beta of SPEC 3.11
  item_scores: Array | None = None  # f32[batch, items + 1], by item id
  counts: Array | None = None  # f32[batch, columns], of layers/count_terms.py


class ItemEmbeddings(Pytree):
  """Items as scored: ids, vectors, directions of their texts, columns."""

  ids: Array  # i32[candidates]
  vector: Array  # f32[candidates, dim]
  text: Array | None = None  # f32[candidates, llm_dim], of norm 1
  column: Array | None = None  # i32[candidates], of `UserEmbeddings.counts`


class FacetAttention(Pytree):
  """What a network made of the facets of some users (SPEC 3.7, 3.8)."""

  rows: Array  # i32[batch, facets], rows of all texts, 0 for "unknown"
  names: tuple[str, ...] = static_field()  # of FACETS
  weights: Array  # f32[batch, facets], a mean over heads, of the last layer
  kept: Array | None  # f32[batch, facets, dim], 0 where distillation drops


class Pending(Pytree):
  """Scored events whose update is still to be applied (SPEC 4).

  A group of equal times larger than a batch is collected over several
  batches; `ready` turns True with its last part.
  """

  events: EventBatch  # [capacity]
  user_vectors: Array  # f32[capacity, dim]
  item_vectors: Array  # f32[capacity, dim]
  ready: Array  # bool[]


class TrainState(Pytree):
  """All that training carries from one step to the next."""

  step: Array  # i32[]
  params: Params
  opt_state: Any
  memory: SystemMemory
  pending: Pending
  key: Array  # the run's key; a step folds its number in


class Loss(NamedTuple):
  """The loss of a training batch, summed over its real events.

  The vectors are what a system with feed 'stream' updates its memory from; with
  any other feed they are not read.
  """

  total: Array  # f32[], as it is reported
  decay: Array  # f32[], what the regularizer adds
  user_vectors: Array | None = None  # f32[batch, dim]
  item_vectors: Array | None = None  # f32[batch, dim]


def _as_it_is(params, memory, inputs, key):
  """The `propagate` of a system that has no node tables."""
  del params, inputs, key
  return memory


class System(NamedTuple):
  """A recommender as pure functions (one file in models/ builds one).

  Attributes:
    feed: how it is trained: 'stream' (chronological batches through memory),
      'shuffled' (all training events in a fresh random order each epoch, no
      updates), 'sequences' (the same, a row of a batch being consecutive
      events of one user), 'none' (nothing learned; its memory is filled by
      replaying the events).
    by_time: whether its state must advance at every distinct time
      (count-based floors) rather than once an evaluation batch (SPEC 5).
    init: `(key, inputs, capacity) -> params, memory`; `capacity` is the number
      of events that `Pending` holds.
    reset: `(memory) -> memory` as before the first event.
    embed: `(params, memory, inputs, users [batch], user_times [batch],
      items [candidates], item_time [], key) -> UserEmbeddings,
      ItemEmbeddings`; users at their own times, items at `item_time`. `key` is
      None where nothing random is wanted (no dropout).
    update: `(params, memory, inputs, pending) -> memory` after the pending
      events whose mask is True.
    propagate: `(params, memory, inputs, key) -> memory` with all node tables
      that `embed` reads; called once a training step, inside the gradient, and
      once before a replay. It always computes them, whether `memory` has any or
      not; training does not carry them. `key` as in `embed`.
    loss: `(params, memory, inputs, batch, events, key, config) -> Loss` of a
      system's own; `events` are the batch's positions in the log, `config` is
      `config.train`. None: SPEC 3.9 over `embed`.
    sequence_length: with feed 'sequences', events of a row at most: `batch` and
      `events` are [batch, sequence_length], oldest first, padding last.
    attention: `(params, memory, inputs, users [batch], user_times [batch]) ->
      FacetAttention`, what was made of each user's facets, for explanations;
      None where there is nothing of the kind.
    map_texts: `(params, inputs) -> f32[items + 1 or more, width]`, what the
      parameters make of each item's text. A replay, in which they stand still,
      takes it once and hands it on as `Inputs.mapped_texts`. None where no text
      is mapped.
    tabulate: `(params, memory, inputs) -> NodeTables` of the memory. Where
      `inputs` has those of the memory before its latest update, only the rows
      that it wrote are made. A replay keeps them and hands them on as
      `Inputs.tables`. None where a system reads none.
    reads_train_graph: whether `Inputs.train_graph` is wanted.
    reads_facets: whether the texts of `Inputs.facets` are wanted.
    learns_quickly: whether training takes seconds, since a few numbers are
      learned; such a system may be ranked beside others (`eval.compare`).
  """

  feed: str
  by_time: bool
  init: Callable[..., tuple[Params, SystemMemory]]
  reset: Callable[..., SystemMemory]
  embed: Callable[..., tuple[UserEmbeddings, ItemEmbeddings]]
  update: Callable[..., SystemMemory]
  propagate: Callable[..., SystemMemory] = _as_it_is
  loss: Callable[..., Loss] | None = None
  sequence_length: int = 0
  attention: Callable[..., FacetAttention] | None = None
  map_texts: Callable[..., Array] | None = None
  tabulate: Callable[..., NodeTables] | None = None
  reads_train_graph: bool = False
  reads_facets: bool = False
  learns_quickly: bool = False


class BoundSystem(Pytree):
  """A system with the parameters and the inputs that its functions read.

  Attributes:
    system: the functions.
    params: of the system.
    inputs: on the device.
  """

  system: System = static_field()
  params: Params
  inputs: Inputs

  def embed(
    self,
    memory: SystemMemory,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: Array | None = None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """`System.embed`; without a key nothing is random."""
    return self.system.embed(
      self.params, memory, self.inputs, users, user_times, items, item_time, key
    )

  def update(self, memory: SystemMemory, pending: Pending) -> SystemMemory:
    """`System.update`."""
    return self.system.update(self.params, memory, self.inputs, pending)

  def propagate(
    self, memory: SystemMemory, key: Array | None = None
  ) -> SystemMemory:
    """`System.propagate`; without a key nothing is random."""
    return self.system.propagate(self.params, memory, self.inputs, key)

  def with_tables(self, tables: NodeTables | None) -> 'BoundSystem':
    """The system, which reads tables of the memory."""
    return self.replace(inputs=self.inputs.replace(tables=tables))

  def tabulate(self, memory: SystemMemory) -> NodeTables:
    """`System.tabulate`, of a system that has it."""
    assert self.system.tabulate is not None
    return self.system.tabulate(self.params, memory, self.inputs)
