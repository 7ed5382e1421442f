"""Time encoding `phi` (SPEC 3.1)."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.types import Array

SHORTEST_DAYS = 1 / 24
LONGEST_DAYS = 3_652.5


def _encode(turns_per_day: Array, days: Array) -> Array:
  return TimeCodes(days, turns_per_day).rows()


class TimeEncoding(nn.Module):
  """`phi(x) = sqrt(1/k) [cos w_1 x, sin w_1 x, ..., cos w_k x, sin w_k x]`.

  Attributes:
    dim: 2k, even.
  """

  dim: int

  def setup(self) -> None:
    periods = np.geomspace(SHORTEST_DAYS, LONGEST_DAYS, self.dim // 2)
    # Learned as logarithms: Adam's steps are equally long for all weights, and
    # one that suits a period of hours would wreck a period of years. The name
    # tells the optimizer to clip this gradient on its own.
    self.log_frequencies = self.param(
      'log_time_frequencies',
      lambda _: jnp.asarray(np.log(2 * np.pi / periods), jnp.float32),
    )

  def __call__(self, days: Array) -> Array:
    """Encodes f32[...] days as f32[..., dim]."""
    return self.codes(days).rows()

  def codes(self, days: Array) -> TimeCodes:
    """The codes of f32[...] days, not yet computed."""
    return TimeCodes(days, self._turns_per_day())

  def function(self) -> jax.tree_util.Partial:
    """The encoding as a pytree that can be called, its leaf the frequencies."""
    return jax.tree_util.Partial(_encode, self._turns_per_day())

  def _turns_per_day(self) -> Array:
    return jnp.exp(self.log_frequencies) / (2 * jnp.pi)
