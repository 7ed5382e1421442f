"""What networks over two node memories share: fields, reading, terms, updates.

A model file derives its network from `StreamNetwork`, calls `share` in
`setup`, and defines `widths`, `embed` and `update`; `stream_system.build`
makes the system from it.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import network_rules
from dynllm_jax.checks import Rule
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import temporal
from dynllm_jax.kernels import row_sums
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.count_terms import CountTerms
from dynllm_jax.layers.item_static import ItemStatic
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.layers.memory_update import Prepared
from dynllm_jax.layers.text_term import item_directions
from dynllm_jax.layers.text_term import TextTerm
from dynllm_jax.layers.time_encoding import TimeEncoding
from dynllm_jax.layers.walks import CopyTerm
from dynllm_jax.layers.walks import WalkTerm
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import KeyRows
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import QueryRows
from dynllm_jax.types import UserEmbeddings

_QUIET = 0.1  # a share of the scale at which scores start


class Widths(NamedTuple):
  """Widths of a network's states and vectors."""

  user: int  # a user's memory
  item: int  # an item's memory; 0 where items have none
  static: int  # an item's static vector, from its text and its id
  vector: int  # what is scored


def shared_fields() -> dict[str, Any]:
  """Options that every temporal system has; off, as in the systems' papers."""
  return {
    'memory_dtype': 'float32',  # float32, float16: what states are kept as
    'item_text': False,  # texts as features of the items
    'item_id_embedding': False,  # a learned vector an item
    'event_features': False,  # SPEC 2.2
    'copy_term': False,  # SPEC 3.11
    'copy_neighbors': 20,
    'walk_term': False,
    'walk_fanout': (10, 8, 8),
    'text_term': False,  # layers/text_term.py
    'text_neighbors': 20,
    'text_whitening': False,
    'count_terms': False,  # SPEC 3.12
    'count_depth': 20,
    'count_successors': 0,
  }


class Received(NamedTuple):
  """What the nodes of a side receive from a batch's events.

  Attributes:
    update: the recurrent update of that side.
    messages: f32[events, any], each event's message to its node.
    hidden: f32[events, width of the side], the hidden state from which a
      node's first event starts; None for the state in the memory.
  """

  update: MemoryUpdate
  messages: Array
  hidden: Array | None = None


class StreamNetwork(nn.Module):
  """The base of a network over node memories.

  Every node has a memory of width `dim`, and an item's static vector is added
  to its memory, `s + v` as in TGN. A network that wants other widths overrides
  `widths`, one that combines the two otherwise overrides `join`.

  Attributes:
    config: `config.model`.
    maps_features: whether `scored` adds a linear map of the event features
      (SPEC 2.2); False for a network that reads them itself.
    attends: whether it embeds items by a `TemporalEmbedding`, its attribute
      `temporal`.
  """

  config: ml_collections.FrozenConfigDict

  maps_features = True

  @property
  def attends(self) -> bool:
    return False

  @property
  def widths(self) -> Widths:
    dim = self.config.dim
    return Widths(user=dim, item=dim, static=dim, vector=dim)

  def share(self) -> None:
    """Makes the modules that all networks have; to be called in `setup`."""
    c, widths = self.config, self.widths
    self.encode = TimeEncoding(c.time_dim)
    self.item_static = ItemStatic(
      widths.static, c.item_text, c.item_id_embedding, c.dropout
    )
    self.initial = self.initial_states()

    if c.copy_term:
      self.copy_term = CopyTerm(c.copy_neighbors, name='copy')
    if c.walk_term:
      self.walk = WalkTerm(tuple(c.walk_fanout))
    if c.text_term:
      self.text = TextTerm(c.text_neighbors)
    if c.count_terms:
      self.count_terms = CountTerms(c.count_depth)
    if c.event_features and self.maps_features:
      self.features = {
        side: nn.Dense(widths.vector) for side in ('user', 'item')
      }
    # Beside counts a network starts quietly: the counts are right at once,
    # while its first scores are noise.
    scale = widths.vector**-0.5 * (_QUIET if c.count_terms else 1)
    self.score_scale = self.param(
      'score_scale', nn.initializers.constant(scale), ()
    )

  def initial_states(self) -> dict[str, Array]:
    """A learned state for the nodes of a side without an event (SPEC 4).

    Returns:
      f32[width of the side] for 'user' and 'item'.
    """
    normal = nn.initializers.normal(1.0)
    return {
      'user': self.param('initial_user', normal, (self.widths.user,)),
      'item': self.param('initial_item', normal, (self.widths.item,)),
    }

  def embed(
    self,
    memory: Memory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    deterministic: bool,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """`System.embed`, to be defined; `deterministic` turns dropout off."""
    raise NotImplementedError

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`, to be defined."""
    raise NotImplementedError

  def touch(
    self, memory: Memory, inputs: Inputs, pending: Pending, **query: Any
  ) -> Any:
    """Reads every parameter, so that `init` makes all of them.

    Args:
      memory: both sides.
      inputs: on the device.
      pending: for `update`.
      **query: what `embed` takes further.
    """
    return (
      self.embed(memory, inputs, **query),
      self.update(memory, inputs, pending),
    )

  def stored(self, memory: Memory, side: str, nodes: Array) -> Array:
    """`h(t^-)`, the memory of some nodes.

    Args:
      memory: both sides.
      side: 'user' or 'item'.
      nodes: i32[...].

    Returns:
      f32[..., width of the side].
    """
    return memory_lib.read(getattr(memory, side), nodes, self.initial[side])

  def static_reader(
    self, inputs: Inputs, num_reads: int, deterministic: bool
  ) -> Callable[[Array], Array]:
    """Makes the function that reads items' static vectors.

    A replay has mapped the text of every item. In training, if more items will
    be read than there are, they are mapped once a step, and rows of the result
    are read; otherwise each text is mapped where it is read. A learned vector
    is always looked up where it is read.

    Args:
      inputs: for the texts.
      num_reads: how many items will be read, repetitions included.
      deterministic: whether dropout is off.

    Returns:
      A function from i32[...] items to f32[..., static width], zero where
      neither text nor id is used.
    """
    c, num_items = self.config, inputs.num_items + 1
    if not (c.item_text or c.item_id_embedding):
      return lambda items: jnp.zeros((*items.shape, self.widths.static))

    static = functools.partial(
      self.item_static,
      inputs.item_text,
      deterministic=deterministic,
      num_rows=num_items,
    )

    read: Callable[[Array], Array]
    mapped = inputs.mapped_texts
    if mapped is not None:
      read = functools.partial(sharded_table.read_rows, mapped)
    elif not c.item_text or num_items > num_reads:
      return static
    else:
      texts = sharded_table.replicate(
        static(jnp.arange(num_items), with_id=False)
      )
      read = functools.partial(row_sums.read_rows, texts)
    if not c.item_id_embedding:
      return read
    return lambda items: read(items) + static(items, with_text=False)

  def map_texts(self, inputs: Inputs, items: Array) -> Array:
    """What `static_reader` makes of items' texts alone, f32[items, width]."""
    return self.item_static(
      inputs.item_text, items, deterministic=True, with_id=False
    )

  def table_rows(
    self, memory: Memory, inputs: Inputs, side: str, nodes: Array
  ) -> QueryRows | KeyRows:
    """Rows of `System.tabulate`, for a network with `self.temporal`.

    Args:
      memory: both sides.
      inputs: for the texts.
      side: 'user' or 'item'.
      nodes: i32[rows] of the side.
    """
    static = self.static_reader(inputs, nodes.size, True)
    rows = self.reader(memory, static)(side, nodes)
    found: QueryRows | KeyRows = self.temporal.table_rows(
      side, rows, self.encode(jnp.zeros([]))
    )
    return found

  def join(self, static: Array, state: Array) -> Array:
    """Combines an item's static vector and memory into what attention reads.

    Args:
      static: f32[..., static width].
      state: f32[..., item width].

    Returns:
      f32[..., dim].
    """
    return state + static

  def reader(
    self, memory: Memory, static: Callable[[Array], Array]
  ) -> Callable[[str, Array], Array]:
    """Makes the function that reads nodes; items with their static vector.

    Args:
      memory: both sides.
      static: what `static_reader` returns.

    Returns:
      A function from a side and i32[...] nodes to f32[..., dim].
    """

    def read(side: str, nodes: Array) -> Array:
      state = self.stored(memory, side, nodes)
      return self.join(static(nodes), state) if side == 'item' else state

    return read

  def after_events(
    self, memory: Memory, events: EventBatch, user: Received, item: Received
  ) -> Memory:
    """Both memories after a batch's events (SPEC 3.10).

    Args:
      memory: both sides.
      events: of the batch.
      user, item: what the nodes of each side receive.

    Returns:
      The memory; without counts, which have an update of their own.
    """

    def prepare(side: str, nodes: Array, received: Received) -> Prepared:
      hidden = received.hidden
      if hidden is None:
        hidden = self.stored(memory, side, nodes)
      return received.update(
        getattr(memory, side),
        nodes,
        events,
        hidden=hidden,
        messages=received.messages,
        encode=self.encode.function(),
      )

    after_user, after_item = memory_update.apply_all(
      events.limits,
      prepare('user', events.users, user),
      prepare('item', events.items, item),
    )
    return Memory(user=after_user, item=after_item)

  def elapsed(
    self, memory: Memory, inputs: Inputs, users: Array, times: Array
  ) -> Array:
    """dt of SPEC 3.4: time since a user's memory was written, in mean returns.

    Args:
      memory: both sides.
      inputs: for the mean return time.
      users: i32[batch].
      times: i32[batch], seconds.

    Returns:
      f32[batch]; 1 for a user without an event.
    """
    last = memory_lib.last_times(memory.user, users)
    days = temporal.days_between(times, last)
    return jnp.where(last >= 0, days / inputs.mean_return_days, 1.0)

  def scored(
    self,
    memory: Memory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    user_vectors: Array,
    items: Array,
    item_time: Array,
    item_vectors: Array,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """What `System.embed` returns, with scale and terms (SPEC 3.9 to 3.12).

    Args:
      memory: for the counts.
      inputs: for the graphs.
      users: i32[batch].
      user_times: i32[batch], seconds.
      user_vectors: f32[batch, vector width].
      items: i32[candidates].
      item_time: i32[], seconds.
      item_vectors: f32[candidates, vector width].

    Returns:
      The embeddings.
    """
    c = self.config
    if c.text_term:
      assert c.text_whitening == (inputs.text_whitening is not None)
    if c.event_features and self.maps_features:
      user_vectors += self.features['user'](
        temporal.event_features(inputs.user_graph, users, user_times)
      )
      item_vectors += self.features['item'](
        temporal.event_features(inputs.item_graph, items, item_time)
      )

    walk, walk_scale = (
      self.walk(inputs, users, user_times) if c.walk_term else (None, None)
    )
    counts = column = None
    if c.count_terms:
      assert memory.counts is not None
      counts, column = self.count_terms(
        memory.counts, inputs, users, user_times, items, item_time
      )
    return UserEmbeddings(
      vector=user_vectors,
      scale=self.score_scale,
      text=self.text(inputs, users, user_times) if c.text_term else None,
      copy=self.copy_term(inputs, users, user_times, self.encode)
      if c.copy_term
      else None,
      walk=walk,
      walk_scale=walk_scale,
      counts=counts,
    ), ItemEmbeddings(
      items,
      item_vectors,
      text=item_directions(inputs, items) if c.text_term else None,
      column=column,
    )


def check_fields(
  config: ml_collections.ConfigDict, rules: Sequence[Rule] = ()
) -> None:
  """Stops at the first value that no network could be built from.

  Args:
    config: `config.model`.
    rules: for the system's own fields; the rules for shared fields are added.

  Raises:
    InputError: naming the field, its value and what is allowed.
  """
  checks.check('config.model', config, [*_shared_rules(config), *rules])


def _shared_rules(config: ml_collections.ConfigDict) -> list[Rule]:
  """Rules of the shared fields that a system has."""
  rules = [
    network_rules.even_width('dim'),
    network_rules.even_width('time_dim'),
    network_rules.num_heads(config.dim),
    checks.at_least('num_layers', 1),
    checks.at_least('num_neighbors', 1),
    checks.at_least('copy_neighbors', 1),
    checks.at_least('text_neighbors', 1),
    checks.at_least('count_depth', 1),
    checks.at_least('count_successors', 0),
    network_rules.dropout(),
    checks.one_of('update_ties', ('mean', 'each')),
    checks.one_of('memory_dtype', memory_lib.DTYPES),
    network_rules.walk_fanout(),
  ]
  return [rule for rule in rules if rule.field in config]
