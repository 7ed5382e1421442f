"""DyRep (Trivedi et al., ICLR 2019): localized propagation, then recurrence.

After an event of nodes v and u, in the paper's equation,
  `z_v(t) = sigmoid(W^struct h^struct_u(t^-) + W^rec z_v(t'_v) + W^t (t - t'_v)
  + b)`, `h^struct_u` an attention over the neighbors of the *other* node
(layers/local_attention.py), with one set of weights for all nodes; between its
events a node's embedding stands still.

What differs here:
- The attention weights come from the intensity between a node and its
  neighbor at `t^-`. The paper accumulates intensities in a matrix over all
  pairs of nodes, which no catalogue has room for. The neighbors are the latest
  `num_neighbors`, not all.
- The score is a scaled dot product (SPEC 3.9) and the loss that of all systems
  here. The paper's intensity is linear in both nodes side by side, so that it
  would rank items alike for every user; its survival term, an integral over
  all pairs, falls away with it.
- A node's events in a batch apply in order (SPEC 3.10), read from the
  embeddings at the batch's start; elapsed time enters by the time encoding;
  embeddings start as a learned vector a side. Features of items, where
  switched on, are added to their embedding and do not fade.
"""

import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.graph import temporal
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.local_attention import LocalAttention
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Memory
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting; neighbors as TGN has them."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'time_dim': 128,
      'num_neighbors': 10,
      'dropout': 0.0,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
    }
  )


class DyRep(StreamNetwork):
  """The network."""

  def setup(self) -> None:
    c = self.config
    self.share()
    self.attend = LocalAttention(c.dim)
    self.update_memory = memory_update.MemoryUpdate(
      c.dim, merge_ties=c.update_ties == 'mean', cell=memory_update.RNN
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
    """`System.embed`: the embeddings as they are in the memory."""
    read = self.reader(
      memory, self.static_reader(inputs, items.size, deterministic)
    )
    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=read('user', users),
      items=items,
      item_time=item_time,
      item_vectors=read('item', items),
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`: a node's message is the other's neighborhood."""
    events = pending.events
    num_reads = events.items.size * (1 + self.config.num_neighbors)
    read = self.reader(memory, self.static_reader(inputs, num_reads, True))

    def propagated(
      own_graph: TemporalGraph, side: str, nodes: Array, other_side: str
    ) -> Array:
      near = temporal.neighborhood(
        own_graph, nodes, events.times, self.config.num_neighbors
      )
      return self.attend(
        read(side, nodes), read(other_side, near.nodes), near.mask
      )

    of_users = propagated(inputs.user_graph, 'user', events.users, 'item')
    of_items = propagated(inputs.item_graph, 'item', events.items, 'user')
    return self.after_events(
      memory,
      events,
      user=Received(self.update_memory, of_items),
      item=Received(self.update_memory, of_users),
    )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(DyRep(ml_collections.FrozenConfigDict(config)))
