"""TGN: temporal graph networks (Rossi et al. 2020, arXiv 2006.10637).

The paper's best setting (TGN-attn), in its equations:
  message   `m_i = s_i(t^-) || s_j(t^-) || phi(dt)`     (identity)
  memory    `s_i(t) = GRU(m_i, s_i(t^-))`               one GRU for all nodes
  layer 0   `h_j^(0)(t) = s_j(t) + v_j`                 v: node features
  layer l   temporal attention over the 10 latest neighbors, SPEC 3.3

What differs here:
- The paper keeps the last message of a node in a batch. The ordered update
  (SPEC 3.10) applies all of them, one after the other; messages hold the
  memory at the batch's start, as the paper's do.
- The score is a scaled dot product (SPEC 3.9) where the paper has a perceptron
  over both embeddings, which cannot rank a catalogue; widths, time encoding
  and losses are those of all systems here.
- Memory starts as a learned vector a side (SPEC 4), not as zero. Layer 0 of an
  item with features takes part in the message, as an event's own features do
  in the paper.
- Items are embedded by one layer, however deep users are.
"""

import ml_collections

from dynllm_jax.bases import stream_system
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.bases.stream_network import shared_fields
from dynllm_jax.bases.tgn_network import TGN
from dynllm_jax.types import System


def default_config() -> ml_collections.ConfigDict:
  """The paper's setting."""
  return ml_collections.ConfigDict(
    {
      'dim': 128,
      'time_dim': 128,
      'num_neighbors': 10,
      'num_layers': 1,  # of users
      'num_heads': 2,
      'dropout': 0.1,
      'update_ties': 'mean',  # mean, each
      **shared_fields(),
    }
  )


def build(config: ml_collections.ConfigDict) -> System:
  """Makes the system from `config.model`.

  Raises:
    InputError: if a field has a value that is not allowed.
  """
  check_fields(config)
  return stream_system.build(TGN(ml_collections.FrozenConfigDict(config)))
