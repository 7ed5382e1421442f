"""Encoders: BERT and its relatives, and ModernBERT (SPEC 8.1)."""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.text import own_weights
from dynllm_jax.text import rotary
from dynllm_jax.text.bert_settings import BertSettings
from dynllm_jax.text.decoder import activate
from dynllm_jax.text.decoder import by_blocks
from dynllm_jax.types import Array

# Where the files keep the parts of a layer.
_PARTS = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'attention_out': 'attention.output.dense',
  'attention_norm': 'attention.output.LayerNorm',
  'up': 'intermediate.dense',
  'down': 'output.dense',
  'norm': 'output.LayerNorm',
}
_MPNET_PARTS = {
  **_PARTS,
  'query': 'attention.attn.q',
  'key': 'attention.attn.k',
  'value': 'attention.attn.v',
  'attention_out': 'attention.attn.o',
  'attention_norm': 'attention.LayerNorm',
}
_DISTILBERT_PARTS = {
  'query': 'attention.q_lin',
  'key': 'attention.k_lin',
  'value': 'attention.v_lin',
  'attention_out': 'attention.out_lin',
  'attention_norm': 'sa_layer_norm',
  'up': 'ffn.lin1',
  'down': 'ffn.lin2',
  'norm': 'output_layer_norm',
}
# Distances from here on share a bucket.
_MAX_DISTANCE = 128


class Block(nn.Module):
  """A layer of BERT: each half is normalized after it is added.

  Attributes:
    settings: of the encoder.
    dtype: in which products are computed.
  """

  settings: BertSettings
  dtype: Any

  @nn.compact
  def __call__(
    self, x: jax.Array, lengths: Array, bias: jax.Array | None
  ) -> jax.Array:
    """Returns the layer's output.

    Args:
      x: [rows, tokens, hidden].
      lengths: i32[rows].
      bias: f32[heads, tokens, tokens], added to scores; None for none.
    """
    s = self.settings
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    norm = functools.partial(
      nn.LayerNorm, epsilon=s.eps, dtype=self.dtype, use_fast_variance=False
    )
    query, key, value = (
      _heads(s, dense(s.hidden_size, name=name)(x))
      for name in ('query', 'key', 'value')
    )
    out = attend(query, key, value, lengths, bias=bias)
    out = dense(s.hidden_size, name='attention_out')(out)
    x = norm(name='attention_norm')(x + out)

    wide = activate(s.activation, dense(s.intermediate_size, name='up')(x))
    return norm(name='norm')(x + dense(s.hidden_size, name='down')(wide))


class ModernBlock(nn.Module):
  """A layer of ModernBERT: each half is normalized before it is computed.

  Attributes:
    settings: of the encoder.
    index: the layer's number.
    dtype: in which products are computed.
  """

  settings: BertSettings
  index: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, lengths: Array) -> jax.Array:
    """Returns the layer's output, [rows, tokens, hidden]."""
    s = self.settings
    norm = functools.partial(_modern_norm, s, self.dtype)
    # The embeddings of the first layer are normalized already.
    y = norm(name='attn_norm')(x) if self.index else x
    x = x + ModernAttention(s, self.index, self.dtype, name='attn')(y, lengths)

    y = norm(name='mlp_norm')(x)
    return x + ModernPerceptron(s, self.dtype, name='mlp')(y)


class ModernAttention(nn.Module):
  """Attention of ModernBERT, with rotary positions.

  Attributes:
    settings: of the encoder.
    index: the layer's number.
    dtype: in which products are computed.
  """

  settings: BertSettings
  index: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, lengths: Array) -> jax.Array:
    """Returns [rows, tokens, hidden]."""
    s, layer = self.settings, self.settings.layers[self.index]
    dense = functools.partial(
      nn.Dense, use_bias=s.attention_bias, dtype=self.dtype
    )
    query, key, value = (
      _heads(s, part)
      for part in jnp.split(dense(3 * s.hidden_size, name='Wqkv')(x), 3, -1)
    )
    positions = jnp.arange(x.shape[1])[None]
    cos, sin = rotary.cos_sin(layer.rope, positions, lengths)
    query, key = rotary.turn(query, cos, sin), rotary.turn(key, cos, sin)
    out = attend(query, key, value, lengths, reach=layer.reach)
    return dense(s.hidden_size, name='Wo')(out)


class ModernPerceptron(nn.Module):
  """A gated perceptron.

  Attributes:
    settings: of the encoder.
    dtype: in which products are computed.
  """

  settings: BertSettings
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [rows, tokens, hidden]."""
    s = self.settings
    dense = functools.partial(nn.Dense, use_bias=s.mlp_bias, dtype=self.dtype)
    wide = dense(2 * s.intermediate_size, name='Wi')(x)
    up, gate = jnp.split(wide, 2, -1)
    return dense(s.hidden_size, name='Wo')(activate(s.activation, up) * gate)


class Bert(nn.Module):
  """The whole network.

  Attributes:
    settings: what it computes.
    dtype: in which products are computed.
  """

  settings: BertSettings
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Array, lengths: Array) -> jax.Array:
    """Hidden states of texts, whose padding is on the right.

    Args:
      tokens: i32[rows, tokens].
      lengths: i32[rows], tokens of each text.

    Returns:
      [rows, tokens, hidden].
    """
    s = self.settings
    if s.family == 'modernbert':
      return self._modern(tokens, lengths)

    table = functools.partial(
      nn.Embed, features=s.hidden_size, dtype=self.dtype
    )
    x = table(s.vocab_size, name='word_embeddings')(tokens)
    at = s.first_position + jnp.arange(tokens.shape[1])
    x += table(s.num_positions, name='position_embeddings')(at)
    if s.num_types:
      types = table(s.num_types, name='token_type_embeddings')
      x += types(jnp.zeros(1, jnp.int32))
    x = nn.LayerNorm(
      epsilon=s.eps,
      dtype=self.dtype,
      use_fast_variance=False,
      name='LayerNorm',
    )(x)

    bias = None
    if s.num_buckets:
      buckets = _buckets(tokens.shape[1], s.num_buckets)
      weights = nn.Embed(
        s.num_buckets, s.num_heads, name='relative_attention_bias'
      )(buckets)
      bias = weights.transpose(2, 0, 1)
    for number in range(s.num_layers):
      x = Block(s, self.dtype, name=f'layers_{number}')(x, lengths, bias)
    return x

  def _modern(self, tokens: Array, lengths: Array) -> jax.Array:
    """Hidden states of ModernBERT."""
    s = self.settings
    x = nn.Embed(
      s.vocab_size, s.hidden_size, dtype=self.dtype, name='tok_embeddings'
    )(tokens)
    x = _modern_norm(s, self.dtype, name='norm')(x)
    for number in range(s.num_layers):
      x = ModernBlock(s, number, self.dtype, name=f'layers_{number}')(
        x, lengths
      )
    return _modern_norm(s, self.dtype, name='final_norm')(x)


def weight_name(family: str, path: tuple[str, ...]) -> str:
  """The name of a parameter in Hugging Face's files.

  Args:
    family: of the encoder.
    path: of the parameter.
  """
  plain = own_weights.torch_name(path)
  if path[0] == 'relative_attention_bias':
    return f'encoder.{plain}'
  if not path[0].startswith('layers_'):
    return plain if path[0] == 'final_norm' else f'embeddings.{plain}'
  if family == 'modernbert':
    return plain
  parts = {'mpnet': _MPNET_PARTS, 'distilbert': _DISTILBERT_PARTS}.get(
    family, _PARTS
  )
  room = 'transformer' if family == 'distilbert' else 'encoder'
  _, number, _, last = plain.split('.')
  return f'{room}.layer.{number}.{parts[path[1]]}.{last}'


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lengths: Array,
  *,
  bias: jax.Array | None = None,
  reach: int | None = None,
) -> jax.Array:
  """Attention of all tokens of a text over all of them.

  Args:
    query, key, value: [rows, tokens, heads, dim].
    lengths: i32[rows]; what is behind is not seen.
    bias: f32[heads, tokens, tokens], added to scores; None for none.
    reach: how far to each side a token sees; None for all.

  Returns:
    [rows, tokens, heads * dim].
  """
  rows, tokens, _, dim = query.shape
  columns = jnp.arange(tokens)
  places = jnp.broadcast_to(columns, (rows, tokens))
  real = columns < jnp.asarray(lengths)[:, None]

  def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
    some, at = part
    scores = jnp.einsum('rthd,rchd->rhtc', some, key) / math.sqrt(dim)
    scores = scores.astype(jnp.float32)
    if bias is not None:
      scores += bias[:, at[0]]
    seen = real[:, None, None]
    if reach is not None:
      # A token of the padding may see none but itself.
      near = jnp.abs(at[0][:, None] - columns) <= reach
      seen = (seen & near) | (at[0][:, None] == columns)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
    return jnp.einsum('rhtc,rchd->rthd', weights.astype(some.dtype), value)

  return by_blocks(block, (query, places)).reshape(rows, tokens, -1)


def _heads(s: BertSettings, x: jax.Array) -> jax.Array:
  """A map's output by heads."""
  return x.reshape(*x.shape[:2], s.num_heads, -1)


def _modern_norm(s: BertSettings, dtype: Any, name: str) -> nn.LayerNorm:
  """A norm of ModernBERT."""
  return nn.LayerNorm(
    epsilon=s.eps,
    use_bias=s.norm_bias,
    dtype=dtype,
    use_fast_variance=False,
    name=name,
  )


def _buckets(tokens: int, count: int) -> np.ndarray:
  """The bucket of every two tokens' distance, i32[tokens, tokens].

  Half of them are for what is behind; half of those for one distance each, the
  others for ever more.
  """
  distance = np.arange(tokens)[None] - np.arange(tokens)[:, None]
  half = count // 2
  exact = half // 2
  far = np.abs(distance)
  # In float32, as the model was trained.
  ratio = np.log(np.maximum(far, 1).astype(np.float32) / exact) / math.log(
    _MAX_DISTANCE / exact
  )
  large = exact + (ratio * (half - exact)).astype(np.int32)
  bucket = np.where(far < exact, far, np.minimum(large, half - 1))
  return (bucket + half * (distance > 0)).astype(np.int32)
