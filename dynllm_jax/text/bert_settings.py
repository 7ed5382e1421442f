"""What an encoder computes, read from its config.json.

BERT, RoBERTa and XLM-R, MPNet and DistilBERT are one network with a few
choices, and ModernBERT another (SPEC 8.1).
"""

import dataclasses
import pathlib
from typing import Any

from dynllm_jax.text import config_fields
from dynllm_jax.text import rotary
from dynllm_jax.types import InputError

_READ = (
  'activation',
  'attention_bias',
  'dim',
  'global_attn_every_n_layers',
  'global_rope_theta',
  'hidden_act',
  'hidden_activation',
  'hidden_dim',
  'hidden_size',
  'intermediate_size',
  'layer_norm_eps',
  'layer_types',
  'local_attention',
  'local_rope_theta',
  'max_position_embeddings',
  'mlp_bias',
  'n_heads',
  'n_layers',
  'norm_bias',
  'norm_eps',
  'num_attention_heads',
  'num_hidden_layers',
  'rope_parameters',
  'type_vocab_size',
  'vocab_size',
)
_FIXED: dict[str, tuple[Any, ...]] = {
  'add_cross_attention': (False,),
  'cross_attention_hidden_size': (None,),
  'is_decoder': (False,),
  'position_embedding_type': ('absolute',),
  'pruned_heads': ({},),
  # transformers does not heed another number.
  'relative_attention_num_buckets': (32,),
  'tie_encoder_decoder': (False,),
}
# Of heads, and of how others compute the same.
_OF_HEADS = (
  'classifier_activation',
  'classifier_bias',
  'classifier_pooling',
  'cls_token_id',
  'decoder_bias',
  'directionality',
  'pooler_fc_size',
  'pooler_num_attention_heads',
  'pooler_num_fc_layers',
  'pooler_size_per_head',
  'pooler_type',
  'position_embedding_offset',
  'reference_compile',
  'repad_logits_with_grad',
  'sinusoidal_pos_embds',
  'sparse_pred_ignore_index',
  'sparse_prediction',
  'tie_weights_',
  'tie_word_embeddings',
)
ACTIVATIONS = ('gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu', 'silu')
FAMILIES = (
  'bert',
  'roberta',
  'xlm-roberta',
  'camembert',
  'mpnet',
  'distilbert',
  'modernbert',
)


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one layer of ModernBERT does in its own way.

  Attributes:
    reach: how far to each side a token sees; None for all.
    rope: how positions are told.
  """

  reach: int | None
  rope: rotary.Rope


@dataclasses.dataclass(frozen=True)
class BertSettings:
  """What an encoder computes.

  Attributes:
    family: one of `FAMILIES`.
    vocab_size, hidden_size, intermediate_size, num_heads, num_layers: sizes.
    max_positions: tokens that a text may have.
    eps: of the norms.
    activation: of the perceptron.
    num_positions: rows of the table of positions, 0 where there is none.
    first_position: the row of a text's first token.
    num_types: rows of the table of token types, of which the first is used; 0
      where there is none.
    num_buckets: of distances, each with a weight of its own in a head; 0 where
      there are none.
    attention_bias, mlp_bias, norm_bias: whether ModernBERT's maps have a bias.
    layers: of ModernBERT, one for each.
  """

  family: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  num_layers: int
  max_positions: int
  eps: float
  activation: str
  num_positions: int = 0
  first_position: int = 0
  num_types: int = 0
  num_buckets: int = 0
  attention_bias: bool = True
  mlp_bias: bool = True
  norm_bias: bool = True
  layers: tuple[Layer, ...] = ()


def read(place: pathlib.Path, raw: dict[str, Any], config: Any) -> BertSettings:
  """The settings of an encoder of one of `FAMILIES`.

  Args:
    place: its config.json, for messages.
    raw: what is written there.
    config: the same as transformers reads it, defaults and all.

  Raises:
    InputError: naming a field that is not understood, or has a value that is
      not.
  """
  config_fields.check(place, raw, (*_READ, *_OF_HEADS), _FIXED)
  family = config.model_type
  names = ('hidden_act', 'hidden_activation', 'activation')
  activation = next(
    (getattr(config, name) for name in names if hasattr(config, name)), None
  )
  if activation not in ACTIVATIONS:
    raise InputError(
      f'{place}: the activation {activation!r} is not understood; allowed: '
      f'{", ".join(ACTIVATIONS)}'
    )
  shared: dict[str, Any] = dict(
    family=family,
    vocab_size=config.vocab_size,
    hidden_size=config.hidden_size,
    num_heads=config.num_attention_heads,
    num_layers=config.num_hidden_layers,
    activation=activation,
  )
  if family == 'modernbert':
    return BertSettings(
      **shared,
      intermediate_size=config.intermediate_size,
      max_positions=config.max_position_embeddings,
      eps=config.norm_eps,
      attention_bias=config.attention_bias,
      mlp_bias=config.mlp_bias,
      norm_bias=config.norm_bias,
      layers=_layers(place, raw, config),
    )

  # These count positions from behind the token of padding.
  first = {
    'roberta': config.pad_token_id,
    'xlm-roberta': config.pad_token_id,
    'camembert': config.pad_token_id,
    'mpnet': 1,
  }.get(family, -1) + 1
  return BertSettings(
    **shared,
    intermediate_size=getattr(config, 'hidden_dim', None)
    or config.intermediate_size,
    max_positions=config.max_position_embeddings - first,
    eps=getattr(config, 'layer_norm_eps', 1e-12),
    num_positions=config.max_position_embeddings,
    first_position=first,
    num_types=getattr(config, 'type_vocab_size', 0) if family != 'mpnet' else 0,
    num_buckets=getattr(config, 'relative_attention_num_buckets', 0),
  )


def _layers(
  place: pathlib.Path, raw: dict[str, Any], config: Any
) -> tuple[Layer, ...]:
  """Windows and positions of ModernBERT's layers."""
  newer = raw.get('rope_parameters') or {}
  types = getattr(config, 'layer_types', None) or [
    'sliding_attention'
    if number % config.global_attn_every_n_layers
    else 'full_attention'
    for number in range(config.num_hidden_layers)
  ]
  thetas = {
    'full_attention': raw.get(
      'global_rope_theta', getattr(config, 'global_rope_theta', 160_000.0)
    )
  }
  thetas['sliding_attention'] = (
    raw.get('local_rope_theta', getattr(config, 'local_rope_theta', 10_000.0))
    or thetas['full_attention']
  )

  dim = config.hidden_size // config.num_attention_heads
  return tuple(
    Layer(
      reach=config.local_attention // 2
      if kind == 'sliding_attention'
      else None,
      rope=rotary.read(
        place,
        newer.get(kind),
        thetas[kind],
        dim,
        config.max_position_embeddings,
      ),
    )
    for kind in types
  )
