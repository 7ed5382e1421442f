"""A system of learned node features, propagated over the training graph."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import flax_network
from dynllm_jax.bases import network_rules
from dynllm_jax.bases import static_system
from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Params
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TrainGraph
from dynllm_jax.types import UserEmbeddings


class NodeFeatures(nn.Module):
  """A learned vector of every node; an item's text may be added to its vector.

  Attributes:
    dim: width.
    item_text: whether a learned map of an item's text is added.
    initializer: of the vectors; by default Glorot's, as in NGCF's code.
  """

  dim: int
  item_text: bool = False
  initializer: nn.initializers.Initializer = nn.initializers.glorot_uniform()

  @nn.compact
  def __call__(self, graph: TrainGraph, text: Array) -> Array:
    """The features.

    Args:
      graph: for the number of nodes.
      text: f16[items + 1, llm_dim].

    Returns:
      f32[nodes, dim].
    """
    num_nodes = len(graph.degrees)
    features = self.param('ids', self.initializer, (num_nodes, self.dim))
    if self.item_text:
      rows = nn.Dense(self.dim, use_bias=False)(text.astype(jnp.float32))
      features += jnp.pad(rows, ((num_nodes - len(text), 0), (0, 0)))
    return features


def unit_rows(x: Array) -> Array:
  """Rows of f32[..., dim] scaled to length 1; a row of zeros stays zero."""
  squares = jnp.sum(x**2, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def build(network: nn.Module) -> System:
  """Makes the system; its score is the dot product of two nodes' rows.

  It is trained on all training events, in random order; the graph holds a
  (user, item) pair once, however often it occurs.

  Args:
    network: called as `(graph, item_text, deterministic)`; gives
      f32[nodes, any] in the order of `TrainGraph`.

  Returns:
    The system, whose memory is the propagated node table.
  """

  def texts(inputs: Inputs) -> Array:
    return inputs.item_text[: inputs.num_items + 1]

  def init(key: jax.Array, inputs: Inputs) -> Params:
    return flax_network.init_params(
      network, key, inputs.train_graph, texts(inputs)
    )

  def propagate(
    params: Params, memory: SystemMemory, inputs: Inputs, key: jax.Array | None
  ) -> Array:
    del memory
    return flax_network.call(
      network, params, inputs.train_graph, texts(inputs), key=key
    )

  def embed(
    params: Params,
    memory: Array,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
    key: jax.Array | None,
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del params, user_times, item_time, key
    first_item = len(memory) - 1 - inputs.num_items
    return (
      UserEmbeddings(vector=row_sums.read_rows(memory, users)),
      ItemEmbeddings(items, row_sums.read_rows(memory, first_item + items)),
    )

  return static_system.build(
    'shuffled', init, embed, propagate=propagate, reads_train_graph=True
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the fields of `config.model` that these systems share.

  Raises:
    InputError: naming the first that no network could be built from.
  """
  rules = [
    checks.at_least('dim', 1),
    checks.at_least('num_layers', 1),
    network_rules.dropout(),
    network_rules.num_heads(config.dim),
  ]
  checks.check(
    'config.model', config, [rule for rule in rules if rule.field in config]
  )
