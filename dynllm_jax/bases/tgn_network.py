"""TGN's network, which the system TGN and DynLLM on TGN's network share.

Its equations, and what differs from the paper's: models/tgn.py.
"""

import jax.numpy as jnp

from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.temporal_attention import Sources
from dynllm_jax.layers.temporal_attention import TemporalEmbedding
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import UserEmbeddings


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
