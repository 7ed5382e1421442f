"""JODIE (Kumar et al., KDD 2019): mutual recurrent networks and a projector.

In the paper's equations:
  update     `u(t) = sigmoid(W_1 u(t^-) + W_2 i(t^-) + W_3 dt + b)`, and the
             same for items with weights of their own
  projector  `u^(t) = (1 + w dt) * u(t^-)`
  predictor  `j~ = W_1 u^ + W_2 u_static + W_3 i(t^-) + W_4 i_static + b`, the
             static and dynamic embedding of the user's next item, from the
             user and the item `i` bought last

What differs here:
- A static embedding is one-hot in the paper; a learned vector stands for it on
  both sides (`item_id_embedding`), so that a prediction has `dim` values.
- The prediction's items are ranked by a scaled dot product, not by distance,
  and trained by the loss of all systems here (SPEC 3.9), without the paper's
  penalty on the drift of embeddings. The projector's output is normalized.
- Instead of t-batches the ordered update (SPEC 3.10): a node's events apply
  one after the other, each with its partner's state at the batch's start. An
  item is static `dim/2` and dynamic `dim/2`; `dt` enters by the time encoding.
"""

from flax import linen as nn
import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import Received
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.stream_network import StreamNetwork
from dynllm_jax.bases.stream_network import Widths
from dynllm_jax.graph import temporal
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.embed import Embed
from dynllm_jax.layers.projection import LinearProjection
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
      'dropout': 0.0,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
      'item_id_embedding': True,  # the paper's one-hot vectors
    }
  )


class UserStatic(nn.Module):
  """A learned vector a user, for the paper's one-hot vectors."""

  dim: int

  @nn.compact
  def __call__(self, users: Array, num_rows: int) -> Array:
    """Maps i32[batch] users, of a table of `num_rows`, to f32[batch, dim]."""
    return Embed(num_rows, self.dim)(users)


class JODIE(StreamNetwork):
  """The network."""

  @property
  def widths(self) -> Widths:
    dim = self.config.dim
    return Widths(user=dim, item=dim // 2, static=dim // 2, vector=dim)

  def setup(self) -> None:
    c = self.config
    self.share()
    self.user_static = UserStatic(c.dim)
    self.project = LinearProjection()
    self.predict = nn.Dense(c.dim)
    self.updates = {
      side: memory_update.MemoryUpdate(
        width, merge_ties=c.update_ties == 'mean', cell=memory_update.RNN
      )
      for side, width in (('user', c.dim), ('item', c.dim // 2))
    }

  def join(self, static: Array, state: Array) -> Array:
    """An item as the predictor sees it, static || dynamic, f32[..., dim]."""
    return jnp.concatenate([static, state], axis=-1)

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
    """`System.embed`: users as predictions of their next item."""
    read = self.reader(
      memory, self.static_reader(inputs, items.size + users.size, deterministic)
    )

    # A prediction reads the user now, and the item that was taken last.
    last = temporal.neighborhood(inputs.user_graph, users, user_times, 1)
    last_item = jnp.where(last.mask, read('item', last.nodes[:, 0]), 0.0)
    projected = self.project(
      read('user', users), self.elapsed(memory, inputs, users, user_times)
    )
    static = self.user_static(users, inputs.num_users + 1)
    predicted = self.predict(
      jnp.concatenate([projected, static, last_item], axis=-1)
    )
    return self.scored(
      memory,
      inputs,
      users=users,
      user_times=user_times,
      user_vectors=predicted,
      items=items,
      item_time=item_time,
      item_vectors=read('item', items),
    )

  def update(self, memory: Memory, inputs: Inputs, pending: Pending) -> Memory:
    """`System.update`: the mutual recurrent networks."""
    del inputs
    events = pending.events
    user = self.stored(memory, 'user', events.users)
    item = self.stored(memory, 'item', events.items)
    return self.after_events(
      memory,
      events,
      user=Received(self.updates['user'], messages=item, hidden=user),
      item=Received(self.updates['item'], messages=user, hidden=item),
    )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(JODIE(ml_collections.FrozenConfigDict(config)))
