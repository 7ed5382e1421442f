"""Count terms: what counting knows, with learned weights (SPEC 3.12)."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.graph import history
from dynllm_jax.graph import recency
from dynllm_jax.graph import successors
from dynllm_jax.graph import temporal
from dynllm_jax.kernels import platforms
from dynllm_jax.kernels import row_sums
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Counts
from dynllm_jax.types import Inputs

_SHRINKAGE = 5.0  # of transitions, as in SPEC 6
# What is added before a logarithm: to the shares of successors, to recency.
_LEAST_SHARE, _LEAST_RECENCY = 1e-4, 1e-3
_BENDS = (1.0, 7.0, 30.0, 180.0)  # days at which the slope of `past` changes
_REPEATS = 20  # events over which a user's share of repeats is taken
_NUM_PAST = 3 + len(_BENDS)  # features
# Weights before training: something close to what most logs come to.
_START = (
  *[0.0] * _NUM_PAST,
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
    past, follow, own = jnp.split(weights, [_NUM_PAST, _NUM_PAST + 1], axis=1)

    takes = history.takes_before(inputs.user_graph, users, user_times, table)
    share = self._follow(counts, inputs, users, user_times, table)
    features = item_features(counts, items, item_time)
    terms = jnp.einsum('bf,cf->bc', own, features, precision='highest')
    terms += follow * jnp.log(_LEAST_SHARE + share)
    return _add_past(terms, past, takes, user_times), column

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
    table: columns.Table,
  ) -> Array:
    """f32[batch, columns], the share of what followed the user's last items."""
    past = temporal.neighborhood(inputs.user_graph, users, times, self.depth)
    items, numbers, totals = successors.read(counts.successors, past.nodes)
    place = 1.0 / jnp.arange(1, self.depth + 1)
    share = jnp.where(past.mask, place / (totals + _SHRINKAGE), 0.0)
    numbers *= share[..., None]
    column = jnp.where(items > 0, table.find(items), table.size)
    each_user = (len(users), -1)
    return jax.lax.stop_gradient(
      row_sums.sum_in_rows(
        numbers.reshape(each_user), column.reshape(each_user), table.size
      )
    )


@jax.custom_vjp
def _add_past(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  """Terms and a function of how often and how long ago each item was taken.

  A user took few of the candidates, one in hundreds. So a CPU computes it for
  the takes one by one, as long as they fit the list of them; 7 sums over all
  users and candidates for the gradient alone took 13 ms of a training step.

  Args:
    terms: f32[batch, columns].
    weights: f32[batch, features].
    takes: of users and columns.
    times: i32[batch], seconds.

  Returns:
    f32[batch, columns].
  """
  return _by_device(_add_listed, _add_everywhere, terms, weights, takes, times)


def _add_past_forward(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> tuple[Array, tuple[Array, history.Takes, Array]]:
  return _add_past(terms, weights, takes, times), (weights, takes, times)


def _add_past_backward(
  residuals: tuple[Array, history.Takes, Array], cotangent: Array
) -> tuple[Array, Array, None, None]:
  slope = _by_device(_sum_listed, _sum_everywhere, cotangent, *residuals)
  return cotangent, slope, None, None


_add_past.defvjp(_add_past_forward, _add_past_backward)


def _by_device(
  by_list: Callable[..., Array],
  everywhere: Callable[..., Array],
  values: Array,
  weights: Array,
  takes: history.Takes,
  times: Array,
) -> Array:
  """Goes through the list of takes on one CPU, where it has all of them."""

  def if_all(
    values: Array, weights: Array, takes: history.Takes, times: Array
  ) -> Array:
    listed = takes.listed
    has_all = listed.count <= len(listed.row)
    found: Array = jax.lax.cond(
      has_all, by_list, everywhere, values, weights, takes, times
    )
    return found

  if not sharded_table.is_one_device():
    return everywhere(values, weights, takes, times)
  found: Array = platforms.on_cpu(
    if_all, everywhere, values, weights, takes, times
  )
  return found


def _add_listed(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  row, column, _ = takes.listed
  features, _ = _features_of_listed(takes, times)
  weights = weights.at[row].get(mode='fill', fill_value=0)
  total = sum(weights[:, n] * feature for n, feature in enumerate(features))
  # All takes of an item set the same.
  return terms.at[row, column].set(
    terms.at[row, column].get(mode='fill', fill_value=0) + total, mode='drop'
  )


def _sum_listed(
  cotangent: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  row, column, _ = takes.listed
  features, number = _features_of_listed(takes, times)
  # Every take of an item has its share.
  share = cotangent.at[row, column].get(mode='fill', fill_value=0) / number
  values = share[:, None] * jnp.stack(features, axis=1)
  return jnp.zeros_like(weights).at[row].add(values, mode='drop')


def _features_of_listed(
  takes: history.Takes, times: Array
) -> tuple[list[Array], Array]:
  """f32[takes] features of each take's item, and how often it was taken."""
  row, column, _ = takes.listed
  number = takes.number.at[row, column].get(mode='fill', fill_value=1)
  last = takes.last.at[row, column].get(mode='fill', fill_value=0)
  times = times.at[row].get(mode='fill', fill_value=0)
  return _past_features(number, temporal.days_between(times, last)), number


def _add_everywhere(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  return terms + _past(weights, takes, times)


def _sum_everywhere(
  cotangent: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  past = lambda weights: _past(weights, takes, times)
  return jax.vjp(past, weights)[1](cotangent)[0]


def _past(weights: Array, takes: history.Takes, times: Array) -> Array:
  """f32[batch, columns], zero where the user did not take the item."""
  seen = takes.number > 0
  days = temporal.days_between(times[:, None], takes.last)
  features = _past_features(
    jnp.maximum(takes.number, 1), jnp.where(seen, days, 0.0)
  )
  total = sum(
    weights[:, n, None] * feature for n, feature in enumerate(features)
  )
  return jnp.where(seen, total, 0.0)


def _past_features(number: Array, days: Array) -> list[Array]:
  """Of i32[...] takes, 1 or more, the last so many days ago, f32[...] each."""
  bends = [jnp.log1p(jnp.float32(bend)) for bend in _BENDS]
  log_days = jnp.log1p(days)
  return [
    jnp.ones_like(days),
    jnp.log(number.astype(jnp.float32)),
    log_days,
    *[jnp.maximum(log_days - bend, 0.0) for bend in bends],
  ]


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
