"""Rotary positions, and the ways in which they are stretched over long texts.

A pair of coordinates of a query or key is turned by its position times a
frequency. Models that were trained on short texts and read long ones turn some
of the pairs more slowly; `rope_scaling` in config.json says which, and how.
"""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.types import Array
from dynllm_jax.types import InputError

# What each kind of scaling reads, beside its name.
_FIELDS = {
  'default': set(),
  'linear': {'factor'},
  'dynamic': {'factor', 'original_max_position_embeddings'},
  'yarn': {
    'factor',
    'attention_factor',
    'beta_fast',
    'beta_slow',
    'mscale',
    'mscale_all_dim',
    'original_max_position_embeddings',
    'truncate',
  },
  'llama3': {
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  },
}
_NEEDED = {
  'linear': {'factor'},
  'dynamic': {'factor'},
  'yarn': {'factor'},
  'llama3': _FIELDS['llama3'],
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """How a layer turns its queries and keys.

  Attributes:
    theta: the wavelengths' base.
    dim: coordinates of a head.
    max_positions: `max_position_embeddings` of the model.
    kind: default, linear, dynamic, yarn or llama3.
    scaling: the fields of that kind, sorted.
  """

  theta: float
  dim: int
  max_positions: int
  kind: str = 'default'
  scaling: tuple[tuple[str, float], ...] = ()

  @property
  def reach(self) -> int:
    """The most positions that texts may have."""
    # These two say what the model was trained with; the others, what it reads.
    if self.kind in ('linear', 'dynamic'):
      return int(self.max_positions * dict(self.scaling)['factor'])
    return self.max_positions


def read(
  place: pathlib.Path,
  fields: dict[str, Any] | None,
  theta: float,
  dim: int,
  max_positions: int,
) -> Rope:
  """Reads `rope_scaling` of a config.json, or `rope_parameters` of a later one.

  Args:
    place: the file, for messages.
    fields: the object, or None where there is no scaling.
    theta: `rope_theta`, unless `fields` has one.
    dim: coordinates of a head.
    max_positions: `max_position_embeddings`.

  Raises:
    InputError: for a kind or a field that is not understood.
  """
  fields = dict(fields or {})
  # Both names of the kind are in use.
  older = fields.pop('type', 'default')
  kind = fields.pop('rope_type', older)
  theta = float(fields.pop('rope_theta', theta))
  if fields.pop('partial_rotary_factor', 1.0) not in (None, 1.0):
    raise InputError(
      f'{place}: rope_parameters.partial_rotary_factor is not 1; allowed: '
      'models that turn whole heads'
    )
  if kind not in _FIELDS:
    raise InputError(
      f'{place}: rope_scaling of type {kind!r} is not understood; allowed: '
      f'{", ".join(_FIELDS)}'
    )

  fields = {name: value for name, value in fields.items() if value is not None}
  unknown = sorted(fields.keys() - _FIELDS[kind])
  missing = sorted(_NEEDED.get(kind, set()) - fields.keys())
  if unknown or missing:
    raise InputError(
      f'{place}: rope_scaling of type {kind!r} '
      f'{"has" if unknown else "lacks"} {", ".join(unknown or missing)}; '
      f'allowed: {", ".join(sorted(_FIELDS[kind])) or "no field"}'
    )
  return Rope(theta, dim, max_positions, kind, tuple(sorted(fields.items())))


def cos_sin(
  rope: Rope, positions: Array, lengths: Array
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of every pair's angle.

  Args:
    rope: of the layer.
    positions: i32[rows, tokens].
    lengths: i32[rows], tokens of each row's text so far, on which dynamic
      scaling depends.

  Returns:
    Two of f32[rows, tokens, dim / 2].
  """
  frequencies, factor = _frequencies(rope)
  if rope.kind == 'dynamic':
    frequencies = _dynamic(rope, lengths)[:, None]
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def turn(x: Array, cos: Array, sin: Array) -> jax.Array:
  """Turns queries or keys; a pair is coordinate `i` and `i + dim / 2`.

  Args:
    x: [rows, tokens, heads, dim].
    cos, sin: f32[rows, tokens, dim / 2].

  Returns:
    The same shape and type.
  """
  cos, sin = (half[:, :, None].astype(x.dtype) for half in (cos, sin))
  low, high = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


def _frequencies(rope: Rope) -> tuple[Any, float]:
  """Frequencies, f32[dim / 2], and a factor of cosines and sines."""
  exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / rope.dim
  plain = (1 / np.float32(rope.theta) ** exponents).astype(np.float32)
  fields = dict(rope.scaling)
  if rope.kind == 'linear':
    return plain / np.float32(fields['factor']), 1.0
  if rope.kind == 'llama3':
    return _llama3(plain, fields), 1.0
  if rope.kind == 'yarn':
    return _yarn(rope, plain, fields), _yarn_factor(fields)
  return plain, 1.0


def _dynamic(rope: Rope, lengths: Array) -> jax.Array:
  """Frequencies for texts that outgrow the model, f32[rows, dim / 2]."""
  factor, most = dict(rope.scaling)['factor'], rope.max_positions
  lengths = jnp.maximum(lengths, most).astype(jnp.float32)
  stretch = factor * lengths / most - (factor - 1)
  theta = rope.theta * stretch ** (rope.dim / (rope.dim - 2))
  exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / rope.dim
  return 1 / theta[:, None] ** exponents


def _llama3(plain: np.ndarray, fields: dict[str, Any]) -> np.ndarray:
  """Long waves are stretched, short ones stay, between them it is gradual."""
  low, high = fields['low_freq_factor'], fields['high_freq_factor']
  turns = fields['original_max_position_embeddings'] * plain / (2 * math.pi)
  share = np.clip((turns - low) / (high - low), 0, 1)
  mixed = share * plain + (1 - share) * plain / fields['factor']
  return mixed.astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, fields: dict[str, Any]) -> np.ndarray:
  """As llama3, with a ramp over the pairs' numbers."""
  original = fields.get('original_max_position_embeddings', rope.max_positions)

  def pair(turns: float) -> float:
    """The number of the pair that turns so often in the original length."""
    waves = math.log(original / (turns * 2 * math.pi))
    return rope.dim * waves / (2 * math.log(rope.theta))

  low, high = (
    pair(fields.get('beta_fast', 32)),
    pair(fields.get('beta_slow', 1)),
  )
  if fields.get('truncate', True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rope.dim - 1)
  ramp = (np.arange(rope.dim // 2) - low) / (
    high - low if high != low else 1e-3
  )
  share = np.clip(ramp, 0, 1)
  mixed = share * plain / fields['factor'] + (1 - share) * plain
  return mixed.astype(np.float32)


def _yarn_factor(fields: dict[str, Any]) -> float:
  """What makes up for the wider spread of positions."""
  if 'attention_factor' in fields:
    return fields['attention_factor']

  def scale(weight: float) -> float:
    if fields['factor'] <= 1:
      return 1.0
    return 0.1 * weight * math.log(fields['factor']) + 1.0

  one, all_dim = fields.get('mscale'), fields.get('mscale_all_dim')
  return scale(one) / scale(all_dim) if one and all_dim else scale(1.0)
