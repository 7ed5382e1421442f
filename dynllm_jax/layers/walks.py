"""Terms over temporal walks: copy (hop 1) and walk (hop 3), SPEC 3.11."""

from collections.abc import Callable

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import temporal
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs
from dynllm_jax.types import Terms


class CopyTerm(nn.Module):
  """`sum_k [i = i_k] g(phi(t - t_k), k)` over the user's own neighborhood.

  `g` is a perceptron over the time encoding plus a weight for each place k.

  Attributes:
    num_neighbors: how far back the user's own items are read.
  """

  num_neighbors: int

  @nn.compact
  def __call__(
    self,
    inputs: Inputs,
    users: Array,
    times: Array,
    encode: Callable[[Array], Array],
  ) -> Terms:
    """The terms of i32[batch] users at i32[batch] times.

    Args:
      inputs: for the graph.
      users: i32[batch].
      times: i32[batch], seconds.
      encode: phi, f32[...] days -> f32[..., time_dim].

    Returns:
      Terms [batch, num_neighbors].
    """
    near = temporal.neighborhood(
      inputs.user_graph, users, times, self.num_neighbors
    )
    days = temporal.days_between(times[:, None], near.times)
    place = self.param(
      'place', nn.initializers.zeros_init(), (self.num_neighbors,)
    )
    # The encoding of SPEC 3.1 is small (norm 1 over all its dims).
    codes = encode(days)
    codes *= codes.shape[-1] ** 0.5
    hidden = nn.relu(nn.Dense(32)(codes))
    weights = nn.Dense(1)(hidden)[..., 0] + place
    return Terms(near.nodes, jnp.where(near.mask, weights, 0.0))


class WalkTerm(nn.Module):
  """Walks user -> item -> its recent users -> their recent items.

  `beta log(1 + sum exp(c_0 + c_1 log(1 + t - t_1) + c_2 log(1 + t - t_2)
  + c_3 log(1 + |t_3 - t_2|)))`, times in days, never through the user's own
  node. The sum over walks that end in one item is taken when scoring.

  Attributes:
    fanout: neighbors read at each of the three hops.
  """

  fanout: tuple[int, int, int]

  @nn.compact
  def __call__(
    self, inputs: Inputs, users: Array, times: Array
  ) -> tuple[Terms, Array]:
    """The walks of i32[batch] users at i32[batch] times.

    Args:
      inputs: for the graphs.
      users: i32[batch].
      times: i32[batch], seconds.

    Returns:
      Terms [batch, product of fanout], the weights exp(...); and beta, f32[].
    """
    constants = self.param(
      'constants', lambda _: jnp.array([0.0, -0.5, -0.5, -0.5])
    )
    scale = self.param('scale', nn.initializers.ones_init(), ())
    at = times[:, None]
    items = temporal.neighborhood(
      inputs.user_graph, users, times, self.fanout[0]
    )
    others = temporal.neighborhood(
      inputs.item_graph, items.nodes, at, self.fanout[1]
    )
    other_ok = (
      items.mask[..., None]
      & others.mask
      & (others.nodes != users[:, None, None])
    )
    ends = temporal.neighborhood(
      inputs.user_graph, others.nodes, at[..., None], self.fanout[2]
    )
    ok = other_ok[..., None] & ends.mask

    def log_days(later: Array, earlier: Array) -> Array:
      return jnp.log1p(jnp.abs(temporal.days_between(later, earlier)))

    exponent = (
      constants[0]
      + constants[1] * log_days(at, items.times)[..., None, None]
      + constants[2] * log_days(at[..., None], others.times)[..., None]
      + constants[3] * log_days(ends.times, others.times[..., None])
    )
    weights = jnp.where(ok, jnp.exp(jnp.where(ok, exponent, 0.0)), 0.0)
    shape = (len(users), -1)
    return Terms(
      jnp.where(ok, ends.nodes, 0).reshape(shape), weights.reshape(shape)
    ), scale
