"""DynLLM (Zhao et al. 2024, arXiv 2405.07580), SPEC 3."""

import functools

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax import graph
from dynllm_jax import memory as memory_lib
from dynllm_jax.batching import empty_pending
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.layers import distillation
from dynllm_jax.layers import fusion
from dynllm_jax.layers import projection
from dynllm_jax.layers.facet_tokens import FacetTokens
from dynllm_jax.layers.item_static import ItemStatic
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.layers.mlp import MLP
from dynllm_jax.layers.temporal_attention import TemporalEmbedding
from dynllm_jax.layers.time_encoding import TimeEncoding
from dynllm_jax.layers.walks import CopyTerm
from dynllm_jax.layers.walks import WalkTerm
from dynllm_jax.types import Array
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting; every component can be taken away for ablation."""
  return ml_collections.ConfigDict({
      'dim': 128,  # d
      'time_dim': 128,
      'num_neighbors': 3,  # n
      'num_layers': 2,  # L, of users
      'num_heads': 2,  # H
      'shared_layers': True,  # users and items share attention weights
      'dropout': 0.1,
      'memory': True,
      'neighborhood': True,
      'projection': 'interval',  # interval, linear, none
      'update_ties': 'mean',  # mean, each
      'item_text': True,
      'item_id_embedding': False,
      'event_features': False,
      'facets': FACETS,  # any of them, () for none
      'distill': {'order': 'score', 'top_r': 80},  # score, index, mask, none
      'fusion': {'mode': 'merge', 'num_layers': 1, 'alpha': 0.5},
      'copy_term': False,  # SPEC 3.11
      'copy_neighbors': 20,
      'walk_term': False,
      'walk_fanout': (10, 8, 8),
  })


class DynLLM(nn.Module):
  """The network. Its two methods are `embed` and `update` of the System."""
  config: ml_collections.FrozenConfigDict

  def setup(self):
    c = self.config
    self.encode = TimeEncoding(c.time_dim)
    self.item_static = ItemStatic(
        c.dim // 2, c.item_text, c.item_id_embedding, c.dropout)
    normal = nn.initializers.normal(1.0)
    self.initial = {
        'user': self.param('initial_user', normal, (c.dim,)),
        'item': self.param('initial_item', normal, (c.dim // 2,))}
    if c.neighborhood:
      self.temporal = TemporalEmbedding(
          c.dim, c.num_neighbors, c.num_layers, c.num_heads, c.shared_layers,
          c.dropout)
    if c.projection != 'none':
      self.project = (
          projection.IntervalProjection() if c.projection == 'interval'
          else projection.LinearProjection())
    self.aggregate_user = nn.Dense(c.dim)
    self.aggregate_item = nn.Dense(c.dim // 2)
    if c.facets:
      self.facet_tokens = FacetTokens(
          c.dim, c.distill.top_r, c.distill.order, c.dropout)
      self.fuse = fusion.Fusion(
          c.dim, c.num_heads, c.fusion.num_layers, c.fusion.mode,
          c.fusion.alpha, c.dropout)
    else:
      self.head = MLP(c.dim)
    if c.memory:
      ties = c.update_ties == 'mean'
      self.update_user = MemoryUpdate(c.dim, ties)
      self.update_item = MemoryUpdate(c.dim // 2, ties)
    if c.copy_term:
      self.copy = CopyTerm(c.copy_neighbors)
    if c.walk_term:
      self.walk = WalkTerm(tuple(c.walk_fanout))
    self.score_scale = self.param(
        'score_scale', nn.initializers.constant(c.dim ** -0.5), ())

  def embed(
      self, memory: Memory, inputs: Inputs, users: Array, user_times: Array,
      items: Array, item_time: Array,
      deterministic: bool) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """`System.embed` (SPEC 3.3 to 3.9)."""
    c = self.config
    static = self._static(inputs, items.size + users.size, deterministic)

    def read(side, nodes):
      state = self._stored(memory, side, nodes)
      if side == 'item':
        state = jnp.concatenate([static(nodes), state], axis=-1)
      return state

    temporal = functools.partial(
        self._temporal, inputs=inputs, read=read, deterministic=deterministic)
    parts = [read('user', users)]
    parts += temporal('user', users, user_times, c.num_layers)
    if c.projection != 'none':
      parts.append(self.project(
          parts[0], self._elapsed(memory, inputs, users, user_times)))
    if c.event_features:
      parts.append(
          graph.event_features(inputs.user_graph, users, user_times))
    user_graph = self.aggregate_user(jnp.concatenate(parts, axis=-1))

    item_times = jnp.broadcast_to(item_time, items.shape)
    parts = [self._stored(memory, 'item', items)]
    parts += temporal('item', items, item_times, 1)
    if c.event_features:
      parts.append(graph.event_features(inputs.item_graph, items, item_times))
    item_graph = self.aggregate_item(jnp.concatenate(parts, axis=-1))

    walk, walk_scale = (
        self.walk(inputs, users, user_times) if c.walk_term else (None, None))
    return UserEmbeddings(
        vector=self._fused(
            inputs, user_graph, users, user_times, deterministic),
        scale=self.score_scale,
        copy=self.copy(inputs, users, user_times, self.encode)
        if c.copy_term else None,
        walk=walk,
        walk_scale=walk_scale), ItemEmbeddings(
            items, jnp.concatenate([static(items), item_graph], axis=-1))

  def update(
      self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update` (SPEC 3.10)."""
    del inputs
    if not self.config.memory:
      return memory
    events = pending.events
    half = self.config.dim // 2
    return Memory(
        user=self.update_user(
            memory.user, events.users, events.times, events.mask,
            pending.user_vectors, pending.item_vectors, self.encode),
        item=self.update_item(
            memory.item, events.items, events.times, events.mask,
            pending.item_vectors[:, half:], pending.user_vectors,
            self.encode))

  def touch(self, memory, inputs, pending, *args):
    """Reaches every parameter, for `init`."""
    return self.embed(memory, inputs, *args), self.update(
        memory, inputs, pending)

  def _static(self, inputs, num_rows, deterministic):
    """A reader of static halves; of the whole catalogue where that is less."""
    num_items = len(inputs.item_text)
    if num_items <= num_rows * (1 + self.config.num_neighbors):
      table = self.item_static(
          inputs.item_text, jnp.arange(num_items), deterministic)
      return lambda items: table[items]
    return lambda items: self.item_static(
        inputs.item_text, items, deterministic)

  def _stored(self, memory, side, nodes):
    initial = self.initial[side]
    if not self.config.memory:
      return jnp.broadcast_to(initial, (*nodes.shape, len(initial)))
    return memory_lib.read(getattr(memory, side), nodes, initial)

  def _temporal(self, side, nodes, times, num_layers, inputs, read,
                deterministic):
    """`h^N` in a list, or no part at all."""
    if not self.config.neighborhood:
      return []
    return [self.temporal(
        side, nodes, times, num_layers, inputs, read, self.encode,
        deterministic)]

  def _elapsed(self, memory, inputs, users, times):
    """dt of SPEC 3.4; 1 for a user without an event."""
    last = memory.user.time[users]
    days = graph.days_between(times, last)
    return jnp.where(last >= 0, days / inputs.mean_return_days, 1.0)

  def _fused(self, inputs, user_graph, users, times, deterministic):
    """`h_u` from `h_u^G` and the facets known at each user's time."""
    c = self.config
    if not c.facets:
      return self.head(user_graph)
    columns = jnp.array([FACETS.index(name) for name in c.facets])
    rows = lookup(inputs.facets, users, times)[:, columns]
    tokens = self.facet_tokens(
        inputs.facets.texts[rows], rows > 0, deterministic)
    return self.fuse(user_graph, tokens, deterministic)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  _check(config)
  network = DynLLM(ml_collections.FrozenConfigDict(config))

  def init(key, inputs, capacity):
    num_users = len(inputs.user_graph.offsets) - 2
    memory = Memory(
        user=memory_lib.empty(num_users, config.dim, capacity),
        item=memory_lib.empty(
            len(inputs.item_text) - 1, config.dim // 2, capacity))
    nobody = jnp.zeros([1], jnp.int32)
    params = network.init(
        key, memory, inputs, empty_pending(1, config.dim, config.dim), nobody,
        nobody, nobody, jnp.int32(0), True, method='touch')['params']
    return params, memory

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    return network.apply(
        {'params': params}, memory, inputs, users, user_times, items,
        item_time, key is None, method='embed',
        rngs=None if key is None else {'dropout': key})

  def update(params, memory, inputs, pending):
    return network.apply(
        {'params': params}, memory, inputs, pending, method='update')

  def reset(memory):
    return Memory(
        user=memory_lib.reset(memory.user), item=memory_lib.reset(memory.item))

  return System('stream', False, init, reset, embed, update)


def _check(c):
  """Stops at the first value that no network could be built from."""
  rules = [
      ('dim', c.dim > 0 and c.dim % 2 == 0, 'an even number above 0'),
      ('time_dim', c.time_dim > 0 and c.time_dim % 2 == 0,
       'an even number above 0'),
      ('num_heads', c.num_heads > 0 and c.dim % c.num_heads == 0,
       f'a divisor of model.dim = {c.dim}'),
      ('num_layers', c.num_layers >= 1, '1 or more'),
      ('num_neighbors', c.num_neighbors >= 1, '1 or more'),
      ('dropout', 0 <= c.dropout < 1, '0 or more, below 1'),
      ('projection', c.projection in projection.PROJECTIONS,
       ', '.join(projection.PROJECTIONS)),
      ('update_ties', c.update_ties in ('mean', 'each'), 'mean, each'),
      ('facets', set(c.facets) <= set(FACETS), 'some of ' + ', '.join(FACETS)),
      ('distill.order', c.distill.order in distillation.ORDERS,
       ', '.join(distillation.ORDERS)),
      ('distill.top_r', 1 <= c.distill.top_r <= c.dim,
       f'1 to model.dim = {c.dim} (r <= d)'),
      ('fusion.mode', c.fusion.mode in fusion.FUSIONS,
       ', '.join(fusion.FUSIONS)),
      ('fusion.num_layers', c.fusion.num_layers >= 1, '1 or more'),
      ('fusion.alpha', 0 <= c.fusion.alpha <= 1, '0 to 1'),
      ('copy_neighbors', c.copy_neighbors >= 1, '1 or more'),
      ('walk_fanout', len(c.walk_fanout) == 3 and min(c.walk_fanout) >= 1,
       'three numbers, 1 or more each'),
  ]
  for field, fine, allowed in rules:
    if not fine:
      value = functools.reduce(getattr, field.split('.'), c)
      raise InputError(
          f'config.model.{field}: {value!r} is not allowed; allowed: {allowed}')
