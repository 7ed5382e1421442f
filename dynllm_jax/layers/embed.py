"""A table of learned vectors of which a training step may hold some rows."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.types import Array

TABLE, HELD = 'embedding', 'held'  # names among the module's parameters


class Embed(nn.Module):
  """Learned vectors by id.

  Where the parameters have `held`, the table consists of those rows of the
  whole one, in that order; sparse.py puts both there.

  Attributes:
    num_rows: of the whole table.
    dim: width.
  """

  num_rows: int
  dim: int

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """Maps i32[...] ids, each of a held row, to f32[..., dim]."""
    if self.has_variable('params', HELD):
      held = self.get_variable('params', HELD)  # i32[rows], ascending
      return self.get_variable('params', TABLE)[jnp.searchsorted(held, ids)]
    table = self.param(
      TABLE, nn.linear.default_embed_init, (self.num_rows, self.dim)
    )
    return table[ids]
