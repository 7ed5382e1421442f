"""DynLLM (Zhao et al. 2024, arXiv 2405.07580), SPEC 3."""

import functools
import operator
from typing import Any

import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.bases.stream_network import Widths
from dynllm_jax.bases.tgn_network import TGN
from dynllm_jax.checks import Rule
from dynllm_jax.facets.lookup import embeddings
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.graph.temporal import event_features
from dynllm_jax.layers import distillation
from dynllm_jax.layers import fusion
from dynllm_jax.layers import projection
from dynllm_jax.layers.facet_tokens import FacetTokens
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.layers.mlp import Linear
from dynllm_jax.layers.mlp import MLP
from dynllm_jax.layers.mlp import Projected
from dynllm_jax.layers.temporal_attention import Sources
from dynllm_jax.layers.temporal_attention import TemporalEmbedding
from dynllm_jax.types import Array
from dynllm_jax.types import FacetAttention
from dynllm_jax.types import FACETS
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting; every component can be taken away for ablation."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,  # d
      'time_dim': 128,
      'num_neighbors': 3,  # n
      'num_layers': 2,  # L, of users
      'num_heads': 2,  # H
      'shared_layers': True,  # users and items share attention weights
      'dropout': 0.1,
      'memory': True,
      'memory_dtype': 'float32',  # or float16
      'neighborhood': True,
      'network': 'paper',  # paper, tgn: what facets are fused with, SPEC 3.8
      # interval, log_interval, linear, none
      'projection': 'interval',
      'update_ties': 'mean',  # mean, each
      'item_text': True,
      'item_id_embedding': False,
      'event_features': False,
      'facets': FACETS,  # any of them, () for none
      # score, index, mask, none; tanh, sigmoid
      'distill': {'order': 'score', 'top_r': 80, 'gate': 'tanh'},
      # merge, blend, residual, added
      'fusion': {'mode': 'merge', 'num_layers': 1, 'alpha': 0.5},
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
  )


class DynLLM(StreamNetwork):
  """The network, whose `embed` and `update` are those of the System."""

  maps_features = False  # the aggregations read the event features

  @property
  def widths(self) -> Widths:
    dim = self.config.dim
    return Widths(user=dim, item=dim // 2, static=dim // 2, vector=dim)

  @property
  def attends(self) -> bool:
    return bool(self.config.neighborhood)

  def setup(self) -> None:
    c = self.config
    self.share()
    if c.neighborhood:
      self.temporal = TemporalEmbedding(
        dim=c.dim,
        num_neighbors=c.num_neighbors,
        num_layers=c.num_layers,
        num_heads=c.num_heads,
        shared=c.shared_layers,
        dropout=c.dropout,
      )
    if c.projection != 'none':
      self.project = (
        projection.LinearProjection()
        if c.projection == 'linear'
        else projection.IntervalProjection(log=c.projection == 'log_interval')
      )

    # One linear map of all that is known of a node (SPEC 3.5).
    self.aggregate_user = Linear(c.dim)
    self.aggregate_item = Linear(c.dim // 2)

    _add_facets(self)
    if c.memory:
      ties = c.update_ties == 'mean'
      self.update_user = MemoryUpdate(c.dim, ties)
      self.update_item = MemoryUpdate(c.dim // 2, ties)

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
    """`System.embed` (SPEC 3.3 to 3.9)."""
    c = self.config
    num_reads = (items.size + users.size) * (1 + c.num_neighbors)
    static = self.static_reader(inputs, num_reads, deterministic)
    sources = Sources(
      inputs, self.reader(memory, static), self.encode.codes, deterministic
    )

    memory_of_users = sources.read('user', users)
    parts: list[Array | Projected] = [memory_of_users]
    if c.neighborhood:
      parts.append(
        self.temporal('user', users, user_times, c.num_layers, sources)
      )
    if c.projection != 'none':
      parts.append(
        self.project(
          memory_of_users, self.elapsed(memory, inputs, users, user_times)
        )
      )
    if c.event_features:
      parts.append(event_features(inputs.user_graph, users, user_times))
    user_graph = self.aggregate_user(*parts)

    item_times = jnp.broadcast_to(item_time, items.shape)
    parts = [self.stored(memory, 'item', items)]
    if c.neighborhood:
      parts.append(self.temporal('item', items, item_times, 1, sources))
    if c.event_features:
      parts.append(event_features(inputs.item_graph, items, item_times))
    item_graph = self.aggregate_item(*parts)

    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=_fused(
        self, user_graph, inputs, users, user_times, deterministic
      ),
      items=items,
      item_time=item_time,
      item_vectors=self.join(static(items), item_graph),
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update` (SPEC 3.10)."""
    del inputs
    if not self.config.memory:
      return memory

    # Each side's message is the other side's vector. An item's hidden state is
    # the second half of its vector; the first half is static.
    half = self.config.dim // 2
    users, items = pending.user_vectors, pending.item_vectors
    return self.after_events(
      memory,
      pending.events,
      user=Received(self.update_user, messages=items, hidden=users),
      item=Received(self.update_item, messages=users, hidden=items[:, half:]),
    )

  def join(self, static: Array, state: Array) -> Array:
    """`h_i^static || h_i^dyn`, f32[..., dim]."""
    return jnp.concatenate([static, state], axis=-1)

  def stored(self, memory: Memory, side: str, nodes: Array) -> Array:
    """As in the base; without memory, the initial state for every node."""
    if self.config.memory:
      return super().stored(memory, side, nodes)
    initial = self.initial[side]
    return jnp.broadcast_to(initial, (*nodes.shape, len(initial)))


class FacetTGN(TGN):
  """TGN's network, with the vectors of whose users facets are fused."""

  def setup(self) -> None:
    super().setup()
    _add_facets(self)

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
    """`System.embed` (SPEC 3.8)."""
    found, item_embeddings = super().embed(
      memory, inputs, users, user_times, items, item_time, deterministic
    )
    vector = _fused(
      self, found.vector, inputs, users, user_times, deterministic
    )
    return found.replace(vector=vector), item_embeddings


_NETWORKS = {'paper': DynLLM, 'tgn': FacetTGN}
# Parts of the paper's network that TGN's does not have, and their defaults.
_OF_THE_PAPER = ('shared_layers', 'memory', 'neighborhood', 'projection')


def _add_facets(network: DynLLM | FacetTGN) -> None:
  """Makes the modules that fuse facets, in `setup`."""
  c = network.config
  if c.facets:
    network.facet_tokens = FacetTokens(
      c.dim, c.distill.top_r, c.distill.order, c.distill.gate, c.dropout
    )
    network.fuse = fusion.Fusion(
      dim=c.dim,
      num_heads=c.num_heads,
      num_layers=c.fusion.num_layers,
      mode=c.fusion.mode,
      alpha=c.fusion.alpha,
      dropout=c.dropout,
    )
  elif c.fusion.mode != 'added':
    network.head = MLP(c.dim)


def _fused(
  network: DynLLM | FacetTGN,
  user_graph: Array,
  inputs: Inputs,
  users: Array,
  times: Array,
  deterministic: bool,
) -> Array:
  """`h_u` from `h_u^G` and the facets known at each user's time."""
  c = network.config
  if not c.facets:
    if c.fusion.mode == 'added':
      return user_graph
    return network.head(user_graph).product()
  columns = jnp.array([FACETS.index(name) for name in c.facets])
  rows = lookup(inputs.facets, users, times)[:, columns]
  tokens = network.facet_tokens(
    embeddings(inputs.facets, rows), rows > 0, deterministic
  )
  return network.fuse(user_graph, tokens, deterministic)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  top_r = Rule(
    'distill.top_r',
    f'1 to config.model.dim = {config.dim} (r <= d)',
    lambda value: 1 <= value <= config.dim,
  )

  facets = Rule(
    'facets',
    f'some of {", ".join(FACETS)}',
    lambda value: set(value) <= set(FACETS),
  )
  defaults = default_config()
  absent = [
    Rule(
      name,
      f"{defaults[name]!r}: config.model.network='tgn' has no such part",
      functools.partial(operator.eq, defaults[name]),
    )
    for name in _OF_THE_PAPER
    if config.network == 'tgn'
  ]
  check_fields(
    config,
    [
      checks.one_of('network', tuple(_NETWORKS)),
      *absent,
      checks.one_of('projection', projection.PROJECTIONS),
      facets,
      checks.one_of('distill.order', distillation.ORDERS),
      checks.one_of('distill.gate', distillation.GATES),
      top_r,
      checks.one_of('fusion.mode', fusion.FUSIONS),
      checks.at_least('fusion.num_layers', 1),
      checks.fraction('fusion.alpha'),
    ],
  )

  network = _NETWORKS[config.network](ml_collections.FrozenConfigDict(config))
  if not config.facets:
    return stream_system.build(network)

  def attention(
    params: Params, memory: Memory, inputs: Inputs, users: Array, times: Array
  ) -> FacetAttention:
    _, variables = network.apply(
      {'params': params},
      memory,
      inputs,
      users=users,
      user_times=times,
      items=jnp.zeros([1], jnp.int32),
      item_time=times[0],
      deterministic=True,
      method='embed',
      mutable=['intermediates'],
    )

    seen: Any = variables['intermediates']
    last = seen['fuse'][f'SingleQueryAttention_{config.fusion.num_layers - 1}']
    kept = seen.get('facet_tokens', {}).get('kept', (None,))
    columns = jnp.array([FACETS.index(name) for name in config.facets])
    return FacetAttention(
      rows=lookup(inputs.facets, users, times)[:, columns],
      names=tuple(config.facets),
      weights=last['weights'][0].mean(axis=1),
      kept=kept[0],
    )

  return stream_system.build(network, reads_facets=True, attention=attention)
