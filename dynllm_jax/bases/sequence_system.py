"""Systems that read a user's last items as a sequence, and are trained so.

Training takes all targets of a sequence in one pass, each the next item of what
came before: the shifted sequence. What is scored at t sees strictly earlier
events alone: the query of a target is the network's output at the last position
strictly earlier in time. A user without an earlier event has a learned
embedding. When ranking, the query is the output at the last strictly earlier
event, the later splits' included once they are past. An item is scored by its
input embedding.
"""

from collections.abc import Iterable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import flax_network
from dynllm_jax.bases import network_rules
from dynllm_jax.bases import static_system
from dynllm_jax.checks import Rule
from dynllm_jax.graph import temporal
from dynllm_jax.kernels import row_sums
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.time_encoding import TimeEncoding
from dynllm_jax.layers.walks import CopyTerm
from dynllm_jax.layers.walks import WalkTerm
from dynllm_jax.objectives import training_loss
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Loss
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import Params
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings


def default_config(**fields: Any) -> ml_collections.ConfigDict:
  """The fields of `config.model` that all such systems have.

  Args:
    **fields: those of the system: dim, max_length, num_blocks, num_heads,
      dropout, and what is its own.
  """
  return ml_collections.ConfigDict(
    {
      **fields,
      'copy_term': False,  # SPEC 3.11
      'copy_neighbors': 20,
      'walk_term': False,
      'walk_fanout': (10, 8, 8),
      'time_dim': 32,  # of the copy term
    }
  )


class SequenceNetwork(nn.Module):
  """What such networks share; a subclass has the blocks, `outputs`.

  Attributes:
    config: `config.model`.
  """

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(
    self,
    inputs: Inputs,
    users: Array,
    times: Array,
    items: Array,
    deterministic: bool,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    """Embeds each user at several times in one pass, and items.

    Args:
      inputs: for the graph.
      users: i32[batch].
      times: i32[batch, targets], seconds; the input is what is strictly
        earlier than a row's latest.
      items: i32[candidates].
      deterministic: whether dropout is off.

    Returns:
      UserEmbeddings [batch * targets], ItemEmbeddings [candidates].
    """
    c = self.config
    small = nn.initializers.normal(0.02)
    table = self.param('items', small, (inputs.num_items + 1, c.dim))
    nobody = self.param('nobody', small, (c.dim,))
    past = temporal.neighborhood(
      inputs.user_graph, users, times.max(axis=1), c.max_length
    )
    past = jax.tree.map(lambda x: x[:, ::-1], past)  # oldest first
    outputs = self.outputs(
      row_sums.read_rows(table, past.nodes), past, deterministic
    )

    reached = past.mask[:, None] & (past.times[:, None] < times[..., None])
    place = jnp.arange(c.max_length)
    query = jnp.max(jnp.where(reached, place, -1), axis=-1)
    user = jnp.arange(len(outputs), dtype=jnp.int32)[:, None]
    at_query = row_sums.read_rows(
      outputs.reshape(-1, c.dim), user * c.max_length + jnp.maximum(query, 0)
    )
    read = jnp.where((query >= 0)[..., None], at_query, nobody)
    vectors, rows, scale = self.scored(
      read.reshape(-1, c.dim), row_sums.read_rows(table, items)
    )

    each, flat = jnp.repeat(users, times.shape[1]), times.reshape(-1)
    walk, walk_scale = (
      WalkTerm(tuple(c.walk_fanout))(inputs, each, flat)
      if c.walk_term
      else (None, None)
    )
    return UserEmbeddings(
      vector=vectors,
      scale=scale,
      copy=CopyTerm(c.copy_neighbors)(
        inputs, each, flat, TimeEncoding(c.time_dim)
      )
      if c.copy_term
      else None,
      walk=walk,
      walk_scale=walk_scale,
    ), ItemEmbeddings(items, rows)

  def outputs(
    self, rows: Array, past: Neighborhood, deterministic: bool
  ) -> Array:
    """The blocks' output at every position, each of what is at it or before.

    Args:
      rows: f32[batch, length, dim], embeddings of the items, oldest first.
      past: [batch, length], the same items; padding comes first.
      deterministic: whether dropout is off.

    Returns:
      f32[batch, length, dim].
    """
    raise NotImplementedError

  def scored(
    self, vectors: Array, rows: Array
  ) -> tuple[Array, Array, Array | None]:
    """Vectors of users and items as they are multiplied, and a factor."""
    return vectors, rows, None

  def drop(self, x: Array, deterministic: bool) -> Array:
    """Dropout at the network's rate."""
    return Dropout(self.config.dropout)(x, deterministic)

  def with_positions(self, rows: Array, deterministic: bool) -> Array:
    """Adds a learned vector of each position, and drops; as `rows`."""
    c = self.config
    positions = self.param(
      'positions', nn.initializers.normal(0.02), (c.max_length, c.dim)
    )
    return self.drop(rows + positions, deterministic)


def causal(mask: Array) -> Array:
  """bool[batch, query, key]: a position sees itself and what is before it.

  Args:
    mask: bool[batch, length], which positions hold an item.
  """
  return jnp.tril(jnp.ones([mask.shape[1]] * 2, bool)) & mask[:, None]


def build(
  network_type: type[SequenceNetwork],
  config: ml_collections.ConfigDict,
  rules: Iterable[Rule] = (),
) -> System:
  """Makes the system of a network.

  Args:
    network_type: the class of the network.
    config: `config.model`.
    rules: for the fields that only this system has.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  checks.check(
    'config.model',
    config,
    [
      checks.at_least('dim', 1),
      checks.at_least('max_length', 1),
      checks.at_least('num_blocks', 1),
      network_rules.num_heads(config.dim),
      network_rules.dropout(),
      checks.at_least('copy_neighbors', 1),
      network_rules.walk_fanout(),
      network_rules.even_width('time_dim'),
      *rules,
    ],
  )
  network = network_type(ml_collections.FrozenConfigDict(config))

  def init(key: jax.Array, inputs: Inputs) -> Params:
    nobody = jnp.zeros([1], jnp.int32)
    return flax_network.init_params(
      network,
      key,
      inputs,
      users=nobody,
      times=nobody[:, None],
      items=nobody,
    )

  def apply(
    params: Params,
    inputs: Inputs,
    users: Array,
    times: Array,
    items: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    return flax_network.call(
      network, params, inputs, users=users, times=times, items=items, key=key
    )

  def embed(
    params: Params,
    memory: SystemMemory,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del memory, item_time
    times = user_times[:, None]
    return apply(params, inputs, users, times, items=items, key=key)

  def loss(
    params: Params,
    memory: SystemMemory,
    inputs: Inputs,
    batch: EventBatch,
    events: Array,
    key: jax.Array,
    config: ml_collections.ConfigDict,
  ) -> Loss:
    del memory

    def embed_targets(
      items: Array, item_time: Array, key: Any
    ) -> tuple[UserEmbeddings, ItemEmbeddings]:
      del item_time
      users = batch.users[:, 0]  # a row of a batch is of one user
      return apply(params, inputs, users, batch.times, items=items, key=key)

    return training_loss.sampled_loss(
      config,
      embed_targets,
      inputs,
      batch=jax.tree.map(jnp.ravel, batch),
      events=events.reshape(-1),
      key=key,
    )

  return static_system.build(
    'sequences', init, embed, loss=loss, sequence_length=config.max_length
  )
