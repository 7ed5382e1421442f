"""An item's static vector, from its text and its id (SPEC 3.6)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.layers.dropout import Dropout
from dynllm_jax.layers.embed import Embed
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array


class ItemStatic(nn.Module):
  """`LayerNorm(Dropout(W_s LLM_E(text)))`, plus a learned embedding by option.

  Attributes:
    dim: width; d/2 in DynLLM, whose items have a static half.
    use_text: whether the item's text is read.
    use_id: whether the item has a learned embedding.
    dropout: rate.
  """

  dim: int
  use_text: bool
  use_id: bool
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    text: Array,
    items: Array,
    deterministic: bool,
    num_rows: int | None = None,
    with_text: bool = True,
    with_id: bool = True,
  ) -> Array:
    """Maps items to their static vectors.

    Args:
      text: f16[items + 1, llm_dim], of all items.
      items: i32[...].
      deterministic: whether dropout is off.
      num_rows: items + 1, where `text` may be longer.
      with_text, with_id: False leaves out a part that would be there.

    Returns:
      f32[..., dim]; zero where neither text nor id is used.
    """
    static = jnp.zeros((*items.shape, self.dim))
    if self.use_text and with_text:
      rows = nn.Dense(self.dim)(
        sharded_table.read_rows(text, items).astype(jnp.float32)
      )
      rows = Dropout(self.dropout)(rows, deterministic)
      static += nn.LayerNorm()(rows)
    if self.use_id and with_id:
      static += Embed(num_rows or len(text), self.dim)(items)
    return static
