"""A decoder: the network of Llama, SmolLM, Mistral, Qwen and Gemma (SPEC 8.1).

One Flax module whose choices are `DecoderSettings`. Its parameters have the
names of the weights in Hugging Face's files, so that `own_weights` reads them
without a table.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from dynllm_jax.text import int8
from dynllm_jax.text import rotary
from dynllm_jax.text.decoder_settings import DecoderSettings
from dynllm_jax.text.decoder_settings import Layer
from dynllm_jax.types import Array

# Queries whose scores are in memory at once, in a pass over whole texts.
_QUERY_BLOCK = 512


class Keys(NamedTuple):
  """Keys and values of one layer.

  Each has last what remains of it in a product, so that XLA's CPU backend
  reads it as it is instead of transposing it in every step.

  Attributes:
    key: [rows, kv_heads, head_dim, columns]; of a beginning that all rows
      share, [1, kv_heads, head_dim, columns].
    value: the same with the last two the other way round.
  """

  key: Array
  value: Array


class Context(NamedTuple):
  """What the tokens of a call may look back at, besides each other.

  Attributes:
    starts: i32[rows], the column in which each row's own text begins; columns
      before it are padding.
    lengths: i32[rows], tokens of each row's text up to the end of this call,
      on which dynamic scaling of positions depends.
    column: i32[], where the call's tokens are written in `cache`.
    cache: one for each layer, or () for a pass over whole texts.
    prefix: one for each layer: the beginning that all rows share, or ().
  """

  starts: Array
  lengths: Array
  column: Array | int = 0
  cache: tuple[Keys, ...] = ()
  prefix: tuple[Keys, ...] = ()


class _View(NamedTuple):
  """Positions and masks of a call, the same in all layers of a kind.

  Attributes:
    queries: i32[rows, tokens], positions.
    keys: i32[rows, columns], positions, below the prefix's length for padding.
    prefix: how long the prefix is.
    context: the call's.
  """

  queries: jax.Array
  keys: jax.Array
  prefix: int
  context: Context


class Norm(nn.Module):
  """RMS normalization, in float32.

  Attributes:
    eps: added to the mean square.
    shift: what is added to the weight: 1 in Gemma's.
  """

  eps: float
  shift: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last axis."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.eps)
    # Llama's family rounds before it multiplies, Gemma's after.
    if self.shift:
      return (wide * (scale.astype(jnp.float32) + self.shift)).astype(x.dtype)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class Attention(nn.Module):
  """Attention with grouped queries.

  Attributes:
    settings: of the decoder.
    layer: of this layer.
    dense: makes a product with a weight.
  """

  settings: DecoderSettings
  layer: Layer
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: jax.Array, view: _View, index: int
  ) -> tuple[jax.Array, Keys]:
    """Attends, and returns the layer's keys with this call's among them.

    Args:
      x: [rows, tokens, hidden].
      view: of the call.
      index: number of the layer.
    """
    s, context = self.settings, view.context
    query, key, value = self._project(x)
    if self.layer.rope:
      cos, sin = rotary.cos_sin(self.layer.rope, view.queries, context.lengths)
      query, key = rotary.turn(query, cos, sin), rotary.turn(key, cos, sin)

    own = Keys(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))
    if context.cache:
      write = jax.lax.dynamic_update_slice_in_dim
      own = Keys(
        *(
          write(jnp.asarray(old), new.astype(old.dtype), context.column, axis)
          for old, new, axis in zip(context.cache[index], own, (3, 2))
        )
      )
    prefix = context.prefix[index] if context.prefix else None
    out = _attend(s, self.layer.window, query, own, prefix, view)
    dense = self.dense(s.hidden_size, use_bias=s.out_bias, name='o_proj')
    return dense(out), own

  def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, each [rows, tokens, heads, head_dim]."""
    s = self.settings
    parts = []
    for name, heads in (
      ('q', s.num_heads),
      ('k', s.num_kv_heads),
      ('v', s.num_kv_heads),
    ):
      dense = self.dense(
        heads * s.head_dim, use_bias=s.qkv_bias, name=f'{name}_proj'
      )
      part = dense(x).reshape(*x.shape[:2], heads, s.head_dim)
      if s.qk_norm and name != 'v':
        part = Norm(s.eps, float(s.is_gemma), name=f'{name}_norm')(part)
      parts.append(part)
    query, key, value = parts
    return query, key, value


class Block(nn.Module):
  """A layer: attention, then a gated perceptron.

  Attributes:
    settings: of the decoder.
    layer: of this layer.
    dense: makes a product with a weight.
  """

  settings: DecoderSettings
  layer: Layer
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: jax.Array, view: _View, index: int
  ) -> tuple[jax.Array, Keys]:
    """Returns the layer's output, [rows, tokens, hidden], and its keys."""
    s = self.settings
    norm = functools.partial(Norm, s.eps, float(s.is_gemma))
    attention = Attention(s, self.layer, self.dense, name='self_attn')
    if not s.has_post_norms:
      out, keys = attention(norm(name='input_layernorm')(x), view, index)
      x = x + out
      y = norm(name='post_attention_layernorm')(x)
      return x + Perceptron(s, self.dense, name='mlp')(y), keys

    out, keys = attention(norm(name='input_layernorm')(x), view, index)
    x = x + norm(name='post_attention_layernorm')(out)
    y = norm(name='pre_feedforward_layernorm')(x)
    y = Perceptron(s, self.dense, name='mlp')(y)
    return x + norm(name='post_feedforward_layernorm')(y), keys


class Perceptron(nn.Module):
  """A gated perceptron.

  Attributes:
    settings: of the decoder.
    dense: makes a product with a weight.
  """

  settings: DecoderSettings
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [rows, tokens, hidden]."""
    s = self.settings

    dense = functools.partial(self.dense, use_bias=s.mlp_bias)
    gate = activate(
      s.activation, dense(s.intermediate_size, name='gate_proj')(x)
    )
    up = dense(s.intermediate_size, name='up_proj')(x)
    return dense(s.hidden_size, name='down_proj')(gate * up)


class Decoder(nn.Module):
  """The whole network.

  Attributes:
    settings: what it computes.
    dtype: in which products are computed.
    is_int8: whether weights have eight bits.
  """

  settings: DecoderSettings
  dtype: Any = jnp.float32
  is_int8: bool = False

  def setup(self) -> None:
    """Makes the parts, by the names of Hugging Face's files."""
    s = self.settings
    kinds: tuple[Callable[..., Any], ...] = (
      (int8.Embed, int8.Dense) if self.is_int8 else (nn.Embed, nn.Dense)
    )
    embed, dense = (functools.partial(kind, dtype=self.dtype) for kind in kinds)
    self.embed_tokens = embed(s.vocab_size, s.hidden_size)
    self.layers = [Block(s, layer, dense) for layer in s.layers]
    self.norm = Norm(s.eps, float(s.is_gemma))
    if not s.is_tied:
      self.lm_head = dense(s.vocab_size, use_bias=False)

  def __call__(
    self, tokens: Array, context: Context
  ) -> tuple[jax.Array, tuple[Keys, ...]]:
    """Runs tokens through all layers.

    Args:
      tokens: i32[rows, tokens].
      context: what they look back at.

    Returns:
      Normalized hidden states, [rows, tokens, hidden], and the keys of all
      layers, those of `context.cache` with the new ones among them.
    """
    s = self.settings
    x = self.embed_tokens(tokens)
    if s.is_gemma:
      x = x * jnp.asarray(s.hidden_size**0.5, x.dtype)
    view = _view(context, tokens.shape[1])
    keys = []
    for index, layer in enumerate(self.layers):
      x, own = layer(x, view, index)
      keys.append(own)
    return self.norm(x), tuple(keys)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Logits of the next token, f32[..., vocab], of hidden states."""
    if self.settings.is_tied:
      out = self.embed_tokens.attend(hidden)
    else:
      out = self.lm_head(hidden)
    out = out.astype(jnp.float32)
    if cap := self.settings.logit_cap:
      out = cap * jnp.tanh(out / cap)
    return out

  def init_all(self, tokens: Array, context: Context) -> jax.Array:
    """Reaches every parameter, for `init` alone."""
    return self.logits(self(tokens, context)[0])


def divided(path: tuple[str, ...]) -> PartitionSpec:
  """How a parameter is divided over the axis `tensor` of a mesh.

  The maps into heads and into the perceptron are divided by what comes out of
  them, the maps back by what goes in, so that a layer sums over devices twice.

  Args:
    path: the parameter's path.
  """
  if path[0] == 'embed_tokens':
    return PartitionSpec('tensor')
  if path[-1] not in ('kernel', 'kernel_scale', 'bias'):
    return PartitionSpec()
  if path[-2] in ('o_proj', 'down_proj'):
    return PartitionSpec('tensor') if path[-1] == 'kernel' else PartitionSpec()
  return (
    PartitionSpec(None, 'tensor')
    if path[-1] == 'kernel'
    else (PartitionSpec('tensor'))
  )


def activate(name: str, x: jax.Array) -> jax.Array:
  """An activation by the name that config.json has for it."""
  if name == 'silu':
    return jax.nn.silu(x)
  if name == 'relu':
    return jax.nn.relu(x)
  return jax.nn.gelu(x, approximate=name != 'gelu')


def run(
  model: Decoder, params: Any, tokens: Array, context: Context
) -> tuple[jax.Array, tuple[Keys, ...]]:
  """Applies a decoder; see `Decoder.__call__`."""
  out: Any = model.apply({'params': params}, tokens, context)
  return out


def next_logits(model: Decoder, params: Any, hidden: Array) -> jax.Array:
  """Logits of the next token, f32[..., vocab], of hidden states."""
  out: Any = model.apply({'params': params}, hidden, method='logits')
  return out


def by_blocks(
  attend: Callable[[tuple[jax.Array, jax.Array]], jax.Array],
  parts: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """Attends with some queries at a time, so that few scores are in memory.

  Args:
    attend: of queries, [rows, tokens, ...], and their positions.
    parts: all of them.

  Returns:
    What it gives for all, joined along the tokens.
  """
  rows, tokens = parts[0].shape[:2]
  blocks = tokens // _QUERY_BLOCK
  if tokens % _QUERY_BLOCK or blocks < 2:
    return attend(parts)
  split = jax.tree.map(
    lambda a: jnp.moveaxis(
      a.reshape(rows, blocks, _QUERY_BLOCK, *a.shape[2:]), 1, 0
    ),
    parts,
  )
  out = jnp.moveaxis(jax.lax.map(attend, split), 0, 1)
  return out.reshape(rows, tokens, *out.shape[3:])


def whole(tokens: Array, lengths: Array) -> Context:
  """The context of whole texts, whose padding is on the right.

  Args:
    tokens: i32[rows, tokens].
    lengths: i32[rows], tokens of each text.
  """
  return Context(np.zeros(tokens.shape[0], np.int32), lengths)


def empty_cache(
  settings: DecoderSettings, rows: int, columns: int, dtype: Any
) -> tuple[Keys, ...]:
  """A cache of zeros, one entry a layer."""
  heads = (rows, settings.num_kv_heads)
  key, value = (settings.head_dim, columns), (columns, settings.head_dim)
  return tuple(
    Keys(jnp.zeros(heads + key, dtype), jnp.zeros(heads + value, dtype))
    for _ in settings.layers
  )


def _view(context: Context, tokens: int) -> _View:
  """Positions of a call's tokens and of all that they may look back at."""
  before = context.prefix[0].value.shape[2] if context.prefix else 0
  columns = context.cache[0].value.shape[2] if context.cache else tokens
  starts = jnp.asarray(context.starts)[:, None]
  first = jnp.asarray(before + context.column)
  queries = first + jnp.arange(tokens) - starts
  keys = before + jnp.arange(columns) - starts
  return _View(queries, keys, before, context)


class _Piece(NamedTuple):
  """Keys that are attended to.

  Attributes:
    keys: of the layer.
    positions: i32[rows or 1, columns].
    is_shared: whether all rows have the same ones.
  """

  keys: Keys
  positions: jax.Array
  is_shared: bool


def _attend(
  s: DecoderSettings,
  window: int | None,
  query: jax.Array,
  own: Keys,
  prefix: Keys | None,
  view: _View,
) -> jax.Array:
  """Attention of queries over the prefix and the rows' own keys.

  Args:
    s: of the decoder.
    window: of the layer.
    query: [rows, tokens, heads, head_dim].
    own: the rows' keys.
    prefix: the shared ones, or None.
    view: positions of all.

  Returns:
    [rows, tokens, heads * head_dim].
  """
  rows, tokens = query.shape[:2]
  groups = s.num_heads // s.num_kv_heads
  query = query.reshape(rows, tokens, s.num_kv_heads, groups, s.head_dim)
  pieces = [_Piece(own, view.keys, False)]
  if prefix is not None:
    pieces.append(_Piece(prefix, jnp.arange(view.prefix)[None], True))

  def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
    return _attend_block(s, window, part, pieces, view.prefix)

  return by_blocks(block, (query, view.queries)).reshape(rows, tokens, -1)


def _attend_block(
  s: DecoderSettings,
  window: int | None,
  part: tuple[jax.Array, jax.Array],
  pieces: list[_Piece],
  prefix: int,
) -> jax.Array:
  """Attention of some of the queries.

  Args:
    s: of the decoder.
    window: of the layer.
    part: the queries, [rows, tokens, kv_heads, groups, dim], and their
      positions, i32[rows, tokens].
    pieces: what they attend to.
    prefix: how long the shared prefix is.

  Returns:
    The shape of the queries.
  """
  query, at = part
  rows, tokens, kv_heads, groups, dim = query.shape
  query = query.transpose(0, 2, 3, 1, 4)
  folded = query.reshape(rows, kv_heads, groups * tokens, dim)
  scores = []
  for keys, positions, is_shared in pieces:
    product = _batched(folded, keys.key, is_shared, jnp.float32)
    product = s.query_scale * product.reshape(*query.shape[:-1], -1)
    if s.score_cap:
      product = s.score_cap * jnp.tanh(product / s.score_cap)
    seen = _seen(window, at, positions, 0 if is_shared else prefix)
    scores.append(jnp.where(seen[:, None, None], product, -jnp.inf))

  weights = jax.nn.softmax(jnp.concatenate(scores, -1), -1)
  widths = np.cumsum([product.shape[-1] for product in scores])[:-1]
  weights = weights.astype(query.dtype).reshape(*folded.shape[:-1], -1)
  parts = [
    _batched(some, keys.value, is_shared)
    for some, (keys, _, is_shared) in zip(
      jnp.split(weights, widths, -1), pieces
    )
  ]
  out = parts[0] + parts[1] if len(parts) == 2 else parts[0]
  return out.reshape(query.shape).transpose(0, 3, 1, 2, 4)


def _batched(
  left: jax.Array, right: Array, is_shared: bool, dtype: Any = None
) -> jax.Array:
  """Products of each row and head with its keys, or values.

  `einsum` would swap the operands, and XLA's CPU backend then copies them.

  Args:
    left: [rows, kv_heads, some, summed].
    right: [rows, kv_heads, summed, others], of one row if it is shared.
    is_shared: whether all rows have the same one.
    dtype: of the result; None for that of the operands.

  Returns:
    [rows, kv_heads, some, others].
  """
  if not is_shared:
    return jax.lax.dot_general(
      left,
      jnp.asarray(right),
      (((3,), (2,)), ((0, 1), (0, 1))),
      preferred_element_type=dtype,
    )
  product = jax.lax.dot_general(
    left,
    jnp.asarray(right)[0],
    (((3,), (1,)), ((1,), (0,))),
    preferred_element_type=dtype,
  )
  return product.swapaxes(0, 1)


def _seen(
  window: int | None, queries: jax.Array, keys: jax.Array, first: int
) -> jax.Array:
  """Which keys a query sees, bool[rows, tokens, columns].

  Args:
    window: of the layer.
    queries, keys: positions.
    first: the least position of a key that is no padding.
  """
  queries, keys = queries[:, :, None], keys[:, None]
  seen = (keys >= first) & (keys <= queries)
  if window is not None:
    seen &= keys > queries - window
  # A query among the padding sees itself, so that no sum is empty.
  return seen | (keys == queries)
