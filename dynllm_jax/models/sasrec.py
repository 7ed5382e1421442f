"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): causal self-attention.

The input is the user's last `max_length` items with learned positions (eq. 1);
each block is self-attention, then a feed-forward network, each as
`x + Dropout(g(LayerNorm(x)))` (eq. 2 to 5 and section III-C); an item is scored
by its input embedding (eq. 6). As in the authors' code and not in the paper,
item embeddings enter times sqrt(dim), and a LayerNorm ends the blocks.

Training takes all targets of a sequence in one pass. What is scored at t sees
strictly earlier events alone: the query of a target is the output at the last
position strictly earlier in time, which is the paper's where no times are
equal. A user without an earlier event has a learned embedding. When ranking,
the query is the output at the last strictly earlier event, the later splits'
included once they are past.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import flax_network
from dynllm_jax.bases import network_rules
from dynllm_jax.bases import static_system
from dynllm_jax.graph import temporal
from dynllm_jax.kernels.few_query_attention import masked_softmax
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
from dynllm_jax.types import Params
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting for sparse logs."""
  return ml_collections.ConfigDict(
    {
      'dim': 50,
      'max_length': 50,
      'num_blocks': 2,
      'num_heads': 1,
      'dropout': 0.5,
      'copy_term': False,  # SPEC 3.11
      'copy_neighbors': 20,
      'walk_term': False,
      'walk_fanout': (10, 8, 8),
      'time_dim': 32,  # of the copy term
    }
  )


def default_train() -> dict[str, object]:
  """The paper's objective (eq. 7), and its batch of 128 sequences."""
  return {
    'batch_size': 128,
    'loss': 'bce',
    'num_negatives': 1,
    'negatives': 'uniform',
  }


class SelfAttention(nn.Module):
  """Multi-head self-attention without biases (eq. 2 to 4).

  Attributes:
    num_heads: divides the width.
  """

  num_heads: int

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    """Attends.

    Args:
      x: f32[batch, length, dim].
      mask: bool[batch, query, key], whether a query sees a key.

    Returns:
      f32[batch, length, dim].
    """
    *shape, dim = x.shape
    query, key, value = (
      nn.Dense(dim, use_bias=False, name=name)(x).reshape(
        *shape, self.num_heads, -1
      )
      for name in ('query', 'key', 'value')
    )
    logits = jnp.einsum('bqhx,bkhx->bhqk', query, key)
    weights = masked_softmax(logits / jnp.sqrt(query.shape[-1]), mask[:, None])
    return jnp.einsum('bhqk,bkhx->bqhx', weights, value).reshape(x.shape)


class SASRec(nn.Module):
  """The network."""

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
    outputs = self._outputs(table[past.nodes], past.mask, deterministic)

    reached = past.mask[:, None] & (past.times[:, None] < times[..., None])
    place = jnp.arange(c.max_length)
    query = jnp.max(jnp.where(reached, place, -1), axis=-1)
    vectors = jnp.where(
      (query >= 0)[..., None],
      jnp.take_along_axis(outputs, jnp.maximum(query, 0)[..., None], axis=1),
      nobody,
    )

    each, flat = jnp.repeat(users, times.shape[1]), times.reshape(-1)
    walk, walk_scale = (
      WalkTerm(tuple(c.walk_fanout))(inputs, each, flat)
      if c.walk_term
      else (None, None)
    )
    return UserEmbeddings(
      vector=vectors.reshape(-1, c.dim),
      copy=CopyTerm(c.copy_neighbors)(
        inputs, each, flat, TimeEncoding(c.time_dim)
      )
      if c.copy_term
      else None,
      walk=walk,
      walk_scale=walk_scale,
    ), ItemEmbeddings(items, table[items])

  def _outputs(self, rows: Array, mask: Array, deterministic: bool) -> Array:
    """The blocks' output at every position, f32[batch, length, dim]."""
    c = self.config

    def dropped(x: Array) -> Array:
      return Dropout(c.dropout)(x, deterministic)

    positions = self.param(
      'positions', nn.initializers.normal(0.02), (c.max_length, c.dim)
    )
    x = dropped(rows * c.dim**0.5 + positions)
    sees = jnp.tril(jnp.ones([c.max_length] * 2, bool)) & mask[:, None]
    for k in range(c.num_blocks):
      attend = SelfAttention(c.num_heads, name=f'attention_{k}')
      x += dropped(attend(nn.LayerNorm()(x), sees))
      hidden = nn.relu(nn.Dense(c.dim)(nn.LayerNorm()(x)))
      x += dropped(nn.Dense(c.dim)(hidden))
    return nn.LayerNorm(name='last_norm')(x)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

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
    ],
  )
  network = SASRec(ml_collections.FrozenConfigDict(config))

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
