"""What a decoder computes, read from its config.json.

Llama 2 and 3, SmolLM 2 and 3, Mistral, Qwen 2 and 3 and Gemma 1 to 3 are one
network with a few choices (SPEC 8.1). Which of them a model makes is said by
the fields of its config.json, for whose defaults `model_type` stands.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from dynllm_jax.text import config_fields
from dynllm_jax.text import rotary
from dynllm_jax.types import InputError

_READ = (
  'attention_bias',
  'attn_logit_softcapping',
  'final_logit_softcapping',
  'head_dim',
  'hidden_act',
  'hidden_activation',
  'hidden_size',
  'intermediate_size',
  'layer_types',
  'max_position_embeddings',
  'max_window_layers',
  'mlp_bias',
  'no_rope_layer_interval',
  'no_rope_layers',
  'num_attention_heads',
  'num_hidden_layers',
  'num_key_value_heads',
  'query_pre_attn_scalar',
  'rms_norm_eps',
  'rope_local_base_freq',
  'rope_parameters',
  'rope_scaling',
  'rope_theta',
  'sliding_window',
  'sliding_window_pattern',
  'tie_word_embeddings',
  'use_sliding_window',
  'vocab_size',
)
_FIXED: dict[str, tuple[Any, ...]] = {
  'add_cross_attention': (False,),
  'cross_attention_hidden_size': (None,),
  'is_decoder': (True, False),
  'is_llama_config': (True,),
  'partial_rotary_factor': (None, 1.0),
  'pruned_heads': ({},),
  'rope_interleaved': (False,),
  'tie_encoder_decoder': (False,),
  'use_bidirectional_attention': (None, False),
  'use_mrope': (None, False),
}
_ACTIVATIONS = ('silu', 'gelu', 'gelu_pytorch_tanh')


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one layer does in its own way.

  Attributes:
    window: tokens that one looks back at, itself included; None for all.
    rope: how positions are told; None where they are not.
  """

  window: int | None
  rope: rotary.Rope | None


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
  """What a decoder computes.

  Attributes:
    vocab_size, hidden_size, intermediate_size: widths.
    num_heads, num_kv_heads, head_dim: of the attention.
    layers: one for each layer.
    max_positions: tokens that a text may have.
    eps: of the norms.
    activation: silu, gelu or gelu_pytorch_tanh.
    qkv_bias, out_bias, mlp_bias: whether these maps have a bias.
    qk_norm: whether queries and keys are normalized.
    is_gemma: whether norms multiply by one more than their weight, and
      embeddings are scaled.
    has_post_norms: whether what a half of a layer adds is normalized as well.
    query_scale: what scores are multiplied by.
    score_cap, logit_cap: soft caps, None for none.
    is_tied: whether the head is the table of tokens.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  layers: tuple[Layer, ...]
  max_positions: int
  eps: float
  activation: str
  qkv_bias: bool
  out_bias: bool
  mlp_bias: bool
  qk_norm: bool
  is_gemma: bool
  has_post_norms: bool
  query_scale: float
  score_cap: float | None
  logit_cap: float | None
  is_tied: bool


@dataclasses.dataclass(frozen=True)
class _Family:
  """What config.json does not say of a `model_type`.

  Attributes:
    qkv_bias, out_bias, mlp_bias: whether the maps have a bias, None where a
      field says so.
    qk_norm: whether queries and keys are normalized.
    is_gemma, has_post_norms: see `DecoderSettings`.
    window: how a layer's window is told: 'types' by `layer_types`, 'all' for
      one window of all layers, or 'none'.
  """

  qkv_bias: bool | None = None
  out_bias: bool | None = None
  mlp_bias: bool | None = False
  qk_norm: bool = False
  is_gemma: bool = False
  has_post_norms: bool = False
  window: str = 'types'


FAMILIES = {
  'llama': _Family(mlp_bias=None, window='none'),
  'smollm3': _Family(mlp_bias=None),
  'mistral': _Family(qkv_bias=False, out_bias=False, window='all'),
  'qwen2': _Family(qkv_bias=True, out_bias=False),
  'qwen3': _Family(qk_norm=True),
  'gemma': _Family(is_gemma=True, window='none'),
  'gemma2': _Family(is_gemma=True, has_post_norms=True),
  'gemma3_text': _Family(is_gemma=True, has_post_norms=True, qk_norm=True),
}


def read(
  place: pathlib.Path, raw: dict[str, Any], config: Any
) -> DecoderSettings:
  """The settings of a decoder of one of `FAMILIES`.

  Args:
    place: its config.json, for messages.
    raw: what is written there.
    config: the same as transformers reads it, defaults and all.

  Raises:
    InputError: naming a field that is not understood, or has a value that is
      not.
  """
  config_fields.check(place, raw, _READ, _FIXED)
  family = FAMILIES[config.model_type]
  bias = bool(getattr(config, 'attention_bias', False))
  head_dim = (
    getattr(config, 'head_dim', None)
    or config.hidden_size // config.num_attention_heads
  )
  if config.num_attention_heads % config.num_key_value_heads:
    raise InputError(
      f'{place}: num_key_value_heads {config.num_key_value_heads} does not '
      f'divide num_attention_heads {config.num_attention_heads}; allowed: a '
      'divisor'
    )
  cap = getattr(config, 'attn_logit_softcapping', None)
  if cap and config.model_type == 'gemma3_text':
    raise InputError(
      f'{place}: attn_logit_softcapping {cap!r} is not understood of '
      'gemma3_text, which transformers ignores; allowed: null'
    )

  layers = _layers(place, raw, config, head_dim)
  reaches = [layer.rope.reach for layer in layers if layer.rope]
  return DecoderSettings(
    vocab_size=config.vocab_size,
    hidden_size=config.hidden_size,
    intermediate_size=config.intermediate_size,
    num_heads=config.num_attention_heads,
    num_kv_heads=config.num_key_value_heads,
    head_dim=head_dim,
    layers=layers,
    max_positions=max(reaches, default=config.max_position_embeddings),
    eps=config.rms_norm_eps,
    activation=_activation(place, config),
    qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
    out_bias=bias if family.out_bias is None else family.out_bias,
    mlp_bias=config.mlp_bias if family.mlp_bias is None else family.mlp_bias,
    qk_norm=family.qk_norm,
    is_gemma=family.is_gemma,
    has_post_norms=family.has_post_norms,
    query_scale=getattr(config, 'query_pre_attn_scalar', head_dim) ** -0.5,
    score_cap=cap,
    logit_cap=getattr(config, 'final_logit_softcapping', None),
    is_tied=config.tie_word_embeddings,
  )


def _activation(place: pathlib.Path, config: Any) -> str:
  """The activation of the perceptron."""
  # Gemma 1 was published with a field that is wrong, and another that is not
  # read; transformers reads the first one, and so it is trained.
  name = getattr(config, 'hidden_act', None) or getattr(
    config, 'hidden_activation', None
  )
  if config.model_type in ('gemma2', 'gemma3_text'):
    name = config.hidden_activation
  if name not in _ACTIVATIONS:
    raise InputError(
      f'{place}: hidden_act {name!r} is not understood; allowed: '
      f'{", ".join(_ACTIVATIONS)}'
    )
  return name


def _layers(
  place: pathlib.Path, raw: dict[str, Any], config: Any, head_dim: int
) -> tuple[Layer, ...]:
  """Windows and positions of all layers."""
  count = config.num_hidden_layers
  types = getattr(config, 'layer_types', None) or ['full_attention'] * count
  known = {'full_attention', 'sliding_attention'}
  if len(types) != count or set(types) - known:
    raise InputError(
      f'{place}: layer_types {types!r} is not understood; allowed: '
      f'{" or ".join(sorted(known))} for each of {count} layers'
    )

  how = FAMILIES[config.model_type].window
  size = getattr(config, 'sliding_window', None)
  if how == 'none' or not getattr(config, 'use_sliding_window', True):
    size = None
  ropes = _ropes(place, raw, config, head_dim)
  turned = getattr(config, 'no_rope_layers', None) or [1] * count
  return tuple(
    Layer(
      window=size if how == 'all' or kind == 'sliding_attention' else None,
      rope=ropes(kind) if turn else None,
    )
    for kind, turn in zip(types, turned, strict=True)
  )


def _ropes(
  place: pathlib.Path, raw: dict[str, Any], config: Any, head_dim: int
) -> Callable[[str], rotary.Rope]:
  """How positions are told in layers of a type."""
  # Later versions keep one object in place of several fields, or one for each
  # type of layer. Whichever version reads it, the file's own word goes first.
  newer = raw.get('rope_parameters') or {}
  theta = getattr(config, 'rope_theta', None) or 10_000.0
  scaling = getattr(config, 'rope_scaling', None)
  if 'rope_theta' in raw:
    theta, scaling = raw['rope_theta'], raw.get('rope_scaling')
  local = raw.get(
    'rope_local_base_freq', getattr(config, 'rope_local_base_freq', None)
  )

  def of(kind: str) -> rotary.Rope:
    fields = newer.get(kind, newer) or scaling
    base = theta
    if local and kind == 'sliding_attention' and not newer:
      fields, base = None, local
    return rotary.read(
      place, fields, base, head_dim, config.max_position_embeddings
    )

  return of
