"""A table of learned vectors, whole or only the rows that a step reads."""

from flax import linen as nn

from dynllm_jax.kernels import binary_search
from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array

TABLE, ROW_IDS = 'embedding', 'row_ids'  # names among the parameters


class Embed(nn.Module):
  """Learned vectors by id.

  Where the parameters have `row_ids`, the table consists of those rows of the
  whole one, in that order; a training step puts both there
  (engine/sparse_update.py).

  Attributes:
    num_rows: of the whole table.
    dim: width.
  """

  num_rows: int
  dim: int

  @nn.compact
  def __call__(self, ids: Array) -> Array:
    """Maps i32[...] ids, each of a row that is there, to f32[..., dim]."""
    if self.has_variable('params', ROW_IDS):
      row_ids: Array = self.get_variable('params', ROW_IDS)  # ascending
      place = binary_search.find(row_ids, ids)
      return row_sums.read_rows(self.get_variable('params', TABLE), place)
    table = self.param(
      TABLE, nn.linear.default_embed_init, (self.num_rows, self.dim)
    )
    return row_sums.read_rows(table, ids)
