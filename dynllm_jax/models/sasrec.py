"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): causal self-attention.

The input is the user's last `max_length` items with learned positions (eq. 1);
each block is self-attention, then a feed-forward network, each as
`x + Dropout(g(LayerNorm(x)))` (eq. 2 to 5 and section III-C); an item is scored
by its input embedding (eq. 6). As in the authors' code and not in the paper,
item embeddings enter times sqrt(dim), and a LayerNorm ends the blocks.

What it shares with others is in bases/sequence_system.py: where no times are
equal, a target's query is the paper's.
"""

from flax import linen as nn
import ml_collections

from dynllm_jax.bases import sequence_system
from dynllm_jax.layers.self_attention import SelfAttention
from dynllm_jax.types import Array
from dynllm_jax.types import Neighborhood
from dynllm_jax.types import System


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting for sparse logs."""
  return sequence_system.default_config(
    dim=50, max_length=50, num_blocks=2, num_heads=1, dropout=0.5
  )


def default_train() -> dict[str, object]:
  """The paper's objective (eq. 7), and its batch of 128 sequences."""
  return {
    'batch_size': 128,
    'loss': 'bce',
    'num_negatives': 1,
    'negatives': 'uniform',
  }


class SASRec(sequence_system.SequenceNetwork):
  """The network."""

  def outputs(
    self, rows: Array, past: Neighborhood, deterministic: bool
  ) -> Array:
    """The blocks' output at every position (sequence_system.py)."""
    c = self.config
    sees = sequence_system.causal(past.mask)
    x = self.with_positions(rows * c.dim**0.5, deterministic)
    for k in range(c.num_blocks):
      attend = SelfAttention(c.num_heads, name=f'attention_{k}')
      x += self.drop(attend(nn.LayerNorm()(x), sees), deterministic)
      hidden = nn.relu(nn.Dense(c.dim)(nn.LayerNorm()(x)))
      x += self.drop(nn.Dense(c.dim)(hidden), deterministic)
    return nn.LayerNorm(name='last_norm')(x)


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  return sequence_system.build(SASRec, config)
