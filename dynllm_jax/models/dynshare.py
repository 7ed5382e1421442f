"""DynShare (Zhao et al., SIGIR 2023, doi 10.1145/3539618.3591775).

Time-interval aware share recommendation over bi-directional continuous-time
dynamic graphs: every node has a memory, temporal attention reads each
direction of the graph with weights of its own, and a personalized projector
around an expected return interval carries the user to the time of the query
(SPEC 3.4 has its equations).

What differs here:
- A share links a sender, an item and a receiver; a purchase links a user and
  an item. The two directions are user to item and item to user, and what is
  known of a node as a sender and as a receiver becomes one.
- The projector reads the user's temporal embedding, as the paper has it, and
  its output is normalized as everywhere here.
- The score is a scaled dot product, the loss and the ordered update are those
  of all systems here (SPEC 3.9, 3.10); items are embedded by one layer.
"""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.layers.projection import IntervalProjection
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
  """The setting of DynLLM's authors, who wrote this system too."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'time_dim': 128,
      'num_neighbors': 3,
      'num_layers': 2,  # of users
      'num_heads': 2,
      'dropout': 0.1,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
    }
  )


class DynShare(StreamNetwork):
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
      shared=False,
      dropout=c.dropout,
    )
    self.project = IntervalProjection()
    ties = c.update_ties == 'mean'
    self.updates = {
      side: MemoryUpdate(c.dim, ties) for side in ('user', 'item')
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
    projected = self.project(
      user_vectors, self.elapsed(memory, inputs, users, user_times)
    )
    item_times = jnp.broadcast_to(item_time, items.shape)
    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=projected,
      items=items,
      item_time=item_time,
      item_vectors=self.temporal(
        'item', items, item_times, 1, sources
      ).product(),
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`: each side's message is the other's memory."""
    events = pending.events
    read = self.reader(
      memory, self.static_reader(inputs, events.items.size, True)
    )

    return self.after_events(
      memory,
      events,
      user=Received(self.updates['user'], read('item', events.items)),
      item=Received(self.updates['item'], read('user', events.users)),
    )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(DynShare(ml_collections.FrozenConfigDict(config)))
