"""HSTU (Zhai et al. 2024, arXiv 2402.17152): gated attention without softmax.

From "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers
for Generative Recommendations", at the size of a shop's log. A layer is

    U, V, Q, K = silu(W_1 LayerNorm(x)), in four parts of width dim     (eq. 1)
    A = silu(Q K' + b_position + b_time) / length, where a key is seen  (eq. 2)
    x <- x + W_2 Dropout(U * LayerNorm(A V))                            (eq. 3)

with heads that share the width. b_position is a learned number for each
distance in positions, b_time one for each bucket of the time between two
events, `floor(log(max(1, seconds)) / .301)`, of 128, each shared by all heads
and a layer's own. Score is the cosine of output and item over `temperature`,
trained with a softmax over sampled negatives, as in the authors' code for
public logs; the negatives are those of SPEC 3.9.

The time of the query is not read, in place of which the authors' code takes the
time of each next event; actions and features other than the item there are
none. What it shares with others is in bases/sequence_system.py.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import sequence_system
from dynllm_jax.types import Array
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import System

_NUM_BUCKETS = 128
_BUCKET_WIDTH = 0.301  # of the logarithm of seconds


def default_config() -> ml_collections.ConfigDict:
  """The authors' small setting for public logs."""
  return sequence_system.default_config(
    dim=64,
    max_length=50,
    num_blocks=2,
    num_heads=2,
    dropout=0.2,
    temperature=0.05,
  )


def default_train() -> dict[str, object]:
  """The authors' objective and rate, and a batch that gives many updates."""
  return {
    'batch_size': 32,
    'loss': 'softmax',
    'num_negatives': 128,
    'negatives': 'uniform',
    'learning_rate': 1e-3,
  }


class HSTULayer(nn.Module):
  """One layer (eq. 1 to 3), without what is added to the input.

  Attributes:
    num_heads: divides the width.
  """

  num_heads: int

  @nn.compact
  def __call__(
    self, x: Array, times: Array, sees: Array
  ) -> tuple[Array, Array]:
    """Attends.

    Args:
      x: f32[batch, length, dim].
      times: i32[batch, length], seconds.
      sees: bool[batch, query, key].

    Returns:
      U and A V, f32[batch, length, dim] each.
    """
    length, dim = x.shape[1:]
    small = nn.initializers.normal(0.02)
    by_distance = self.param('by_distance', small, (length,))
    by_time = self.param('by_time', small, (_NUM_BUCKETS,))
    parts = nn.Dense(4 * dim, use_bias=False, name='parts')(
      nn.LayerNorm(name='norm')(x)
    )
    gate, value, query, key = jnp.split(jax.nn.silu(parts), 4, axis=-1)
    heads = (*x.shape[:2], self.num_heads, -1)
    logits = jnp.einsum(
      'bqhx,bkhx->bhqk', query.reshape(heads), key.reshape(heads)
    )

    place = jnp.arange(length)
    distance = jnp.maximum(place[:, None] - place, 0)
    bias = by_distance[distance] + by_time[_bucket(times)]
    weights = jax.nn.silu(logits + bias[:, None]) / length
    weights = jnp.where(sees[:, None], weights, 0.0)
    sums = jnp.einsum('bhqk,bkhx->bqhx', weights, value.reshape(heads))
    return gate, sums.reshape(x.shape)


def _bucket(times: Array) -> Array:
  """i32[batch, query, key], the bucket of the time between two events."""
  gap = jnp.abs(times[:, :, None] - times[:, None, :])
  logarithm = jnp.log(jnp.maximum(gap, 1).astype(jnp.float32))
  bucket = jnp.floor(logarithm / _BUCKET_WIDTH).astype(jnp.int32)
  return jnp.minimum(bucket, _NUM_BUCKETS - 1)


class HSTU(sequence_system.SequenceNetwork):
  """The network."""

  def outputs(
    self, rows: Array, past: Neighborhood, deterministic: bool
  ) -> Array:
    """The layers' output at every position (sequence_system.py)."""
    c = self.config
    sees = sequence_system.causal(past.mask)
    x = self.with_positions(rows * c.dim**0.5, deterministic)
    for k in range(c.num_blocks):
      layer = HSTULayer(c.num_heads, name=f'layer_{k}')
      gate, sums = layer(x, past.times, sees)
      gated = gate * nn.LayerNorm(name=f'sum_norm_{k}')(sums)
      gated = self.drop(gated, deterministic)
      x += nn.Dense(c.dim, name=f'out_{k}')(gated)
    return x

  def scored(
    self, vectors: Array, rows: Array
  ) -> tuple[Array, Array, Array | None]:
    """Directions of users and items, and one over the temperature."""
    scale = jnp.asarray(1 / self.config.temperature, jnp.float32)
    return _direction(vectors), _direction(rows), scale


def _direction(x: Array) -> Array:
  """Rows at length 1; a row of zeros stays, and has a gradient."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  return sequence_system.build(HSTU, config, [checks.above_zero('temperature')])
