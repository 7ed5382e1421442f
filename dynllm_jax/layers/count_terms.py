"""Count terms: what counting knows, with learned weights (SPEC 3.12)."""

from flax import linen as nn
import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.graph import history
from dynllm_jax.graph import recency
from dynllm_jax.graph import successors
from dynllm_jax.graph import temporal
from dynllm_jax.layers import past_term
from dynllm_jax.types import Array
from dynllm_jax.types import Counts
from dynllm_jax.types import Inputs

_SHRINKAGE = 5.0  # of transitions, as in SPEC 6
# What is added before a logarithm: to the shares of successors, to recency.
_LEAST_SHARE, _LEAST_RECENCY = 1e-4, 1e-3
_REPEATS = 20  # events over which a user's share of repeats is taken
# Weights before training: something close to what most logs come to.
_START = (
  *[0.0] * past_term.NUM_FEATURES,
  0.5,  # successors
  *(0.0, 0.3, 0.1, 0.0),  # recency
  *(0.0, 0.0),  # age
)


class CountTerms(nn.Module):
  """Past, transitions and recency of every candidate, for every user.

  Attributes:
    depth: the user's last events whose successors are read.
  """

  depth: int

  @nn.compact
  def __call__(
    self,
    counts: Counts,
    inputs: Inputs,
    users: Array,
    user_times: Array,
    items: Array,
    item_time: Array,
  ) -> tuple[Array, Array]:
    """The terms of i32[batch] users at their times.

    Args:
      counts: of events before the batch.
      inputs: for the graph of users.
      users: i32[batch].
      user_times: i32[batch], seconds.
      items: i32[candidates].
      item_time: i32[], seconds.

    Returns:
      f32[batch, columns] terms, and i32[candidates], the column of each
      candidate.
    """
    table, column = columns.of_candidates(items, inputs.num_items)
    weights = self._weights(inputs, users, user_times)
    past, follow, own = jnp.split(
      weights, [past_term.NUM_FEATURES, past_term.NUM_FEATURES + 1], axis=1
    )

    takes = history.takes_before(inputs.user_graph, users, user_times, table)
    share = self._follow(counts, inputs, users, user_times, items, table)
    features = item_features(counts, items, item_time)
    terms = jnp.einsum('bf,cf->bc', own, features, precision='highest')
    terms += follow * jnp.log(_LEAST_SHARE + share)
    return past_term.add(terms, past, takes, user_times), column

  def _weights(self, inputs: Inputs, users: Array, times: Array) -> Array:
    """`w_u`, f32[batch, features]."""
    # The parameters are a tenth of the weights, so that a small learning rate
    # suffices.
    start = jnp.array(_START) / 10
    weights = self.param('weights', lambda _: start)
    weights = jnp.broadcast_to(weights, (len(users), len(start)))
    gate = nn.Dense(
      len(start),
      use_bias=False,
      kernel_init=nn.initializers.zeros_init(),
      name='gate',
    )
    weights += gate(user_features(inputs, users, times))
    return 10 * weights

  def _follow(
    self,
    counts: Counts,
    inputs: Inputs,
    users: Array,
    times: Array,
    items: Array,
    table: columns.Table,
  ) -> Array:
    """f32[batch, columns], the share of what followed the user's last items."""
    past = temporal.neighborhood(inputs.user_graph, users, times, self.depth)
    totals = counts.successors.totals[past.nodes]
    place = 1.0 / jnp.arange(1, self.depth + 1)
    share = jnp.where(past.mask, place / (totals + _SHRINKAGE), 0.0)
    return successors.weighted_counts(
      counts.successors, past.nodes, share, items, table
    )


def item_features(counts: Counts, items: Array, time: Array) -> Array:
  """What counts say of items alone: recency and age.

  Args:
    counts: of events before the batch.
    items: i32[candidates].
    time: i32[], seconds.

  Returns:
    f32[candidates, half-lives + 2].
  """
  share = recency.shares(counts.recency, items, time)
  age = recency.age_days(counts.recency, items, time)
  sold = age >= 0
  return jnp.concatenate(
    [
      jnp.log(_LEAST_RECENCY + share),
      jnp.where(sold, jnp.log1p(jnp.maximum(age, 0.0)), 0.0)[:, None],
      sold[:, None].astype(share.dtype),
    ],
    axis=-1,
  )


def user_features(inputs: Inputs, users: Array, times: Array) -> Array:
  """The user's state on which weights depend.

  Args:
    inputs: for the graph of users.
    users: i32[batch].
    times: i32[batch], seconds.

  Returns:
    f32[batch, 5], event features (SPEC 2.2), and the share of the user's last
    events that repeat an earlier one of them.
  """
  near = temporal.neighborhood(inputs.user_graph, users, times, _REPEATS)
  same = near.nodes[:, :, None] == near.nodes[:, None, :]
  earlier = jnp.arange(_REPEATS) > jnp.arange(_REPEATS)[:, None]
  again = (same & earlier & near.mask[:, None, :]).any(-1) & near.mask
  repeats = again.sum(-1) / jnp.maximum(near.mask.sum(-1), 1)
  return jnp.concatenate(
    [
      temporal.event_features(inputs.user_graph, users, times),
      repeats[:, None],
    ],
    axis=-1,
  )
