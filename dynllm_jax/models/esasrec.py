"""eSASRec (Tikhonovich et al. 2025): SASRec from parts that were found best.

From "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion"
(RecSys 2025, arXiv 2508.06450): SASRec's shifted sequence, a softmax over
sampled negatives, and LiGR blocks (Borisyuk et al. 2025, arXiv 2502.03417), in
which the input gates what a layer adds:

    x <- x + sigmoid(W_a x) * Dropout(Attention(LayerNorm(x)))
    x <- x + sigmoid(W_f x) * Dropout(SwiGLU(LayerNorm(x)))
    SwiGLU(x) = W_3 (silu(W_1 x) * W_2 x),   of width `hidden_factor` dim

Item embeddings enter as they are, with learned positions; a LayerNorm ends the
blocks. The negatives of the softmax are uniform and shared by the batch, as
every loss of this library has them (SPEC 3.9), where the paper draws them for
each position. What it shares with others is in bases/sequence_system.py.
"""

from flax import linen as nn
import jax
import ml_collections

from dynllm_jax import checks
from dynllm_jax.bases import sequence_system
from dynllm_jax.layers.self_attention import SelfAttention
from dynllm_jax.types import Array
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import System


def default_config() -> ml_collections.ConfigDict:
  """One block of a width of 64: logs of shops are small."""
  return sequence_system.default_config(
    dim=64,
    max_length=50,
    num_blocks=1,
    num_heads=2,
    dropout=0.2,
    hidden_factor=4,
  )


def default_train() -> dict[str, object]:
  """The paper's objective and rate, and a batch that gives many updates."""
  return {
    'batch_size': 32,
    'loss': 'softmax',
    'num_negatives': 256,
    'negatives': 'uniform',
    'learning_rate': 1e-3,
  }


class ESASRec(sequence_system.SequenceNetwork):
  """The network."""

  def outputs(
    self, rows: Array, past: Neighborhood, deterministic: bool
  ) -> Array:
    """The blocks' output at every position (sequence_system.py)."""
    c = self.config
    sees = sequence_system.causal(past.mask)

    def linear(name: str, x: Array, width: int = c.dim) -> Array:
      return nn.Dense(width, use_bias=False, name=name)(x)

    def gated(name: str, x: Array, added: Array) -> Array:
      gate = jax.nn.sigmoid(nn.Dense(c.dim, name=name)(x))
      return x + gate * self.drop(added, deterministic)

    x = self.with_positions(rows, deterministic)
    for k in range(c.num_blocks):
      attend = SelfAttention(c.num_heads, name=f'attention_{k}')
      normed = nn.LayerNorm(name=f'attention_norm_{k}')(x)
      x = gated(f'attention_gate_{k}', x, attend(normed, sees))

      normed = nn.LayerNorm(name=f'feed_norm_{k}')(x)
      width = c.hidden_factor * c.dim
      hidden = jax.nn.silu(linear(f'feed_1_{k}', normed, width))
      hidden *= linear(f'feed_2_{k}', normed, width)
      x = gated(f'feed_gate_{k}', x, linear(f'feed_3_{k}', hidden))
    return nn.LayerNorm(name='last_norm')(x)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  return sequence_system.build(
    ESASRec, config, [checks.at_least('hidden_factor', 1)]
  )
