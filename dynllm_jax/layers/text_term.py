"""The text term: texts of what a user took lately, against a candidate's text.

The maps of SPEC 3.6 must first learn what the language model knows already.
This term (SPEC 3.11) asks it directly, in its own space and with two learned
numbers: `gain p . e(x)`, where `e(x)` is the direction of a candidate's text
from the mean of all items' texts, and `p` the direction of the texts that the
user took, newer ones weighing more. Embeddings of a language model share a
large mean, which tells no text from another (Mu and Viswanath 2018, arXiv
1702.01417); hence the directions. With `model.text_whitening` texts are
whitened too (Su et al. 2021, arXiv 2103.15316): no direction of them varies
more than another.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.graph import temporal
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs


class TextTerm(nn.Module):
  """`gain p`, to be multiplied with the directions of candidates.

  `p` is the direction of `sum_k (1 + t - t_k)^decay e(i_k)`, times in days.

  Attributes:
    num_neighbors: how far back the user's own items are read.
  """

  num_neighbors: int

  @nn.compact
  def __call__(self, inputs: Inputs, users: Array, times: Array) -> Array:
    """The terms of i32[batch] users at i32[batch] times.

    Args:
      inputs: for the graph and the texts.
      users: i32[batch].
      times: i32[batch], seconds.

    Returns:
      f32[batch, llm_dim]; zero for a user without an earlier event.
    """
    # The parameter is a tenth of it, so that a small learning rate suffices.
    gain = 10 * self.param('gain', nn.initializers.constant(0.2), ())
    decay = self.param('decay', nn.initializers.constant(-0.5), ())
    near = temporal.neighborhood(
      inputs.user_graph, users, times, self.num_neighbors
    )
    days = jnp.where(
      near.mask, temporal.days_between(times[:, None], near.times), 0.0
    )
    weights = jnp.where(near.mask, jnp.exp(decay * jnp.log1p(days)), 0.0)
    return gain * _direction(
      jnp.einsum('bn,bnd->bd', weights, item_directions(inputs, near.nodes))
    )


def item_directions(inputs: Inputs, items: Array) -> Array:
  """`e` of items, f32[..., llm_dim], of norm 1.

  Args:
    inputs: for the texts.
    items: i32[...].
  """
  texts = sharded_table.read_rows(inputs.item_text, items).astype(jnp.float32)
  centered = texts - inputs.text_mean
  if inputs.text_whitening is not None:
    centered @= inputs.text_whitening
  return _direction(centered)


def _direction(x: Array) -> Array:
  """Rows scaled to norm 1; a row of zeros stays zero, its gradient finite."""
  return x * jax.lax.rsqrt(
    jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-12)
  )
