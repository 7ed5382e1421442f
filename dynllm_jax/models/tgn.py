"""TGN: temporal graph networks (Rossi et al. 2020, arXiv 2006.10637).

The paper's best setting (TGN-attn), in its equations:
  message   `m_i = s_i(t^-) || s_j(t^-) || phi(dt)`     (identity)
  memory    `s_i(t) = GRU(m_i, s_i(t^-))`               one GRU for all nodes
  layer 0   `h_j^(0)(t) = s_j(t) + v_j`                 v: node features
  layer l   temporal attention over the 10 latest neighbors, SPEC 3.3

What differs here:
- The paper keeps the last message of a node in a batch. The ordered update
  (SPEC 3.10) applies all of them, one after the other; messages hold the
  memory at the batch's start, as the paper's do.
- The score is a scaled dot product (SPEC 3.9) where the paper has a perceptron
  over both embeddings, which cannot rank a catalogue; widths, time encoding
  and losses are those of all systems here.
- Memory starts as a learned vector a side (SPEC 4), not as zero. Layer 0 of an
  item with features takes part in the message, as an event's own features do
  in the paper.
- Items are embedded by one layer, however deep users are.
"""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.temporal_attention import Sources
from dynllm_jax.layers.temporal_attention import TemporalEmbedding
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'time_dim': 128,
      'num_neighbors': 10,
      'num_layers': 1,  # of users
      'num_heads': 2,
      'dropout': 0.1,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
    }
  )


class TGN(StreamNetwork):
  """The network."""

  @property
  def attends(self) -> bool:
    return True

  def setup(self) -> None:
    c = self.config
    self.share()
    self.temporal = TemporalEmbedding(
      dim=c.dim,
      num_neighbors=c.num_neighbors,
      num_layers=c.num_layers,
      num_heads=c.num_heads,
      dropout=c.dropout,
    )
    self.update_memory = memory_update.MemoryUpdate(
      c.dim, merge_ties=c.update_ties == 'mean', cell=memory_update.GRU
    )

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
    """`System.embed`."""
    c = self.config
    num_reads = (items.size + users.size) * (1 + c.num_neighbors)
    static = self.static_reader(inputs, num_reads, deterministic)
    sources = Sources(
      inputs, self.reader(memory, static), self.encode.codes, deterministic
    )

    user_vectors = self.temporal(
      'user', users, user_times, c.num_layers, sources
    ).product()
    item_times = jnp.broadcast_to(item_time, items.shape)
    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=user_vectors,
      items=items,
      item_time=item_time,
      item_vectors=self.temporal(
        'item', items, item_times, 1, sources
      ).product(),
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`; the memory read is that of the batch's start."""
    events = pending.events
    read = self.reader(
      memory, self.static_reader(inputs, events.items.size, True)
    )
    user, item = read('user', events.users), read('item', events.items)

    def received(own: Array, other: Array) -> Received:
      message = jnp.concatenate([own, other], axis=-1)
      return Received(self.update_memory, message)

    return self.after_events(
      memory, events, user=received(user, item), item=received(item, user)
    )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(TGN(ml_collections.FrozenConfigDict(config)))
