"""Multi-head attention of one query over a few keys."""

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels import platforms
from dynllm_jax.kernels.batched_products import einsum
from dynllm_jax.kernels.few_query_attention import attend
from dynllm_jax.kernels.few_query_attention import FEW_KEYS
from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.mlp import Projected
from dynllm_jax.types import Array


class _Weights(NamedTuple):
  """Of all parts, f32[width, heads, head_dim] each."""

  query: Array
  key: Array
  value: Array


class SingleQueryAttention(nn.Module):
  """Multi-head attention with one query, keys = values (SPEC 3.3, 3.8).

  With a single query the key projection is folded into it,
  `q . (W_k e) = (W_k^T q) . e`, and the value projection is applied to the
  weighted mean of the keys, `sum a (W_v e) = W_v sum a e`: exact, and no
  product grows with the number of keys. Nothing has a bias, so that the output
  without any key is zero.

  Attributes:
    dim: width of the output, and of the heads together.
    num_heads: H; divides `dim`.
    dropout: rate on the attention weights.
  """

  dim: int
  num_heads: int
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    query: Sequence[Array],
    keys: Sequence[Array | TimeCodes],
    mask: Array,
    deterministic: bool,
  ) -> Projected:
    """Attends.

    Args:
      query: parts of the query, whose concatenation is never formed:
        f32[batch, part_dim], or f32[part_dim] where it is the same everywhere.
      keys: parts of the keys, f32[batch, n, part_dim] each; the last may be
        codes of f32[batch, n] days.
      mask: bool[batch, n].
      deterministic: whether dropout is off.

    Returns:
      f32[batch, dim], not yet multiplied with the output projection.
    """
    head_dim = self.dim // self.num_heads
    heads = (self.num_heads, head_dim)
    projection = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', in_axis=0, out_axis=(1, 2)
    )

    def weights(name: str, parts: Sequence[Array | TimeCodes]) -> Array:
      width = sum(map(_width, parts))
      whole: Array = self.param(name, projection, (width, *heads))
      return whole

    w = _Weights(
      weights('query', query), weights('key', keys), weights('value', keys)
    )
    w_out = self.param(
      'out', nn.initializers.lecun_normal(), (self.dim, self.dim)
    )
    scale = Dropout(self.dropout)(
      jnp.ones((len(mask), self.num_heads, mask.shape[-1])), deterministic
    )

    if self.is_mutable_collection('intermediates'):
      # With a key of its own for each place, the mean is the weights.
      size = mask.shape[-1]
      places = jnp.broadcast_to(jnp.eye(size), (*mask.shape, size))
      nothing = jnp.zeros((*scale.shape[:2], size))
      queries = [nothing, *_queries(query, keys, w)]
      shares, *_ = attend(queries, [places, *keys], mask, scale)
      self.sow('intermediates', 'weights', shares)
    # JAX's own gradient of a choice: another would attend twice, since nothing
    # behind a CPU's barriers is recognized as computed before.
    values: Array = platforms.on_gpu(
      _values_of_whole,
      _values_elsewhere,
      *(list(query), list(keys), w, mask.astype(jnp.float32), scale),
    )
    return Projected(values.reshape(-1, self.dim), w_out)


def _width(part: Array | TimeCodes) -> int:
  return part.width if isinstance(part, TimeCodes) else part.shape[-1]


def _rows(keys: Sequence[Array | TimeCodes]) -> list[Array]:
  """The parts of the keys, codes as they are in SPEC 3.1."""
  return [x.rows() if isinstance(x, TimeCodes) else x for x in keys]


def _queries(
  query: Sequence[Array], keys: Sequence[Array | TimeCodes], w: _Weights
) -> list[Array]:
  """The queries as keys see them, f32[batch, heads, part_dim] each."""
  heads = w.query.shape[1:]
  own: Any = sum(
    part @ rows.reshape(-1, math.prod(heads))
    for part, rows in zip(query, _split(w.query, query))
  )
  by_head = jnp.reshape(own, (-1, *heads))
  return [
    einsum('bhk,phk->bhp', 'h', by_head, rows) / jnp.sqrt(heads[-1])
    for rows in _split(w.key, keys)
  ]


def _split(
  weights: Array, parts: Sequence[Array | TimeCodes]
) -> Sequence[Array]:
  """The rows of the weights that belong to each part."""
  return jnp.split(weights, np.cumsum(list(map(_width, parts)))[:-1])


def _values_by_part(
  query: list[Array],
  keys: list[Array | TimeCodes],
  w: _Weights,
  mask: Array,
  scale: Array,
) -> Array:
  """What heads attend to, f32[batch, heads, head_dim]; `mask` as 0 and 1."""
  means = attend(_queries(query, keys, w), keys, mask > 0, scale)
  values: Any = sum(
    einsum('bhp,phk->bhk', 'h', mean, rows)
    for mean, rows in zip(means, _split(w.value, keys))
  )
  return values


def _values_elsewhere(
  query: list[Array],
  keys: list[Array | TimeCodes],
  *others: Any,
) -> Array:
  """The same; a CPU never has the codes of many keys in turn.

  A TPU would pad cosines and sines by themselves, and for few keys two parts
  are dearer than one.
  """

  def of_rows(query: list[Array], keys: list[Any], *others: Any) -> Array:
    return _values_by_part(query, [*_rows(keys)], *others)

  *_, last = keys
  if not isinstance(last, TimeCodes) or last.days.shape[-1] <= FEW_KEYS:
    return of_rows(query, keys, *others)
  values: Array = platforms.on_cpu(
    _values_by_part, of_rows, query, keys, *others
  )
  return values


def _values_of_whole(
  query: list[Array],
  keys: list[Array | TimeCodes],
  w: _Weights,
  mask: Array,
  scale: Array,
) -> Array:
  """The same with parts joined: fewer launches, each of a larger product."""
  rows = [jnp.broadcast_to(x, (len(mask), x.shape[-1])) for x in query]
  whole = jnp.concatenate(_rows(keys), -1)
  return _values_by_part([jnp.concatenate(rows, -1)], [whole], w, mask, scale)
