"""Distillation of a facet to its r most telling coordinates (SPEC 3.7)."""

import jax
import jax.numpy as jnp

from dynllm_jax.kernels import counted_top_r
from dynllm_jax.types import Array

ORDERS = ('score', 'index', 'mask', 'none')
GATES = ('tanh', 'sigmoid')


def distill(
  facet: Array, query: Array, top_r: int, order: str, gate: str = 'tanh'
) -> Array:
  """`h_hat = [h * tanh(s)]_j` with `s = h q / |q|`, j the top r of s.

  Args:
    facet: f32[..., d], h.
    query: f32[d] or broadcastable, q, learned, not zero.
    top_r: r, at most d.
    order: 'score' (paper: slots in descending score), 'index' (slots in the
      order of the coordinates), 'mask' (all d coordinates, the others zero) or
      'none' (no distillation, for ablations).
    gate: 'tanh' (paper; even in h, whose sign is lost) or 'sigmoid', which
      keeps the sign.

  Returns:
    f32[..., r], or f32[..., d] for 'mask' and 'none'.
  """
  if order == 'none':
    return facet
  scores = facet * query / jnp.linalg.norm(query, axis=-1, keepdims=True)
  gated = facet * {'tanh': jnp.tanh, 'sigmoid': jax.nn.sigmoid}[gate](scores)
  return counted_top_r.select(
    gated, jax.lax.stop_gradient(scores), top_r, order
  )
