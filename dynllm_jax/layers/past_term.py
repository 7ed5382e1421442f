"""How often and how long ago a user took an item, as a term (SPEC 3.12).

A user took few of the candidates, one in hundreds. So a CPU computes the term
for the takes one by one, as long as all of them are in the list. Over all users
and candidates, the sums for the gradient alone took 10 ms of a training step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynllm_jax.graph import history
from dynllm_jax.graph import temporal
from dynllm_jax.kernels import platforms
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array

_BENDS = (1.0, 7.0, 30.0, 180.0)  # days at which the slope changes
NUM_FEATURES = 3 + len(_BENDS)

_Way = Callable[[Array, Array, history.Takes, Array], Array]


@jax.custom_vjp
def add(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  """Adds the term to others.

  Args:
    terms: f32[batch, columns].
    weights: f32[batch, NUM_FEATURES].
    takes: of users and columns.
    times: i32[batch], seconds.

  Returns:
    f32[batch, columns]; as before where the user did not take the item.
  """
  return _by_device(_add_listed, _add_everywhere, terms, weights, takes, times)


def _add_forward(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> tuple[Array, tuple[Array, history.Takes, Array]]:
  return add(terms, weights, takes, times), (weights, takes, times)


def _add_backward(
  residuals: tuple[Array, history.Takes, Array], cotangent: Array
) -> tuple[Array, Array, None, None]:
  slope = _by_device(_sum_listed, _sum_everywhere, cotangent, *residuals)
  return cotangent, slope, None, None


add.defvjp(_add_forward, _add_backward)


def _by_device(
  listed: _Way,
  everywhere: _Way,
  values: Array,
  weights: Array,
  takes: history.Takes,
  times: Array,
) -> Array:
  """Goes through the list of takes on one CPU, where it has all of them."""

  def if_all(
    values: Array, weights: Array, takes: history.Takes, times: Array
  ) -> Array:
    found: Array = jax.lax.cond(
      takes.listed.has_all, listed, everywhere, values, weights, takes, times
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
  def add(terms: Array, row: Array, column: Array) -> Array:
    features, number = _features_of_takes(takes, times, row, column)
    of_row = _read(weights, row)
    total = sum(of_row[:, n] * feature for n, feature in enumerate(features))
    share = total / number
    return jnp.asarray(terms).at[row, column].add(share, mode='drop')

  return takes.listed.fold(add, terms)


def _sum_listed(
  cotangent: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  def add(slope: jax.Array, row: Array, column: Array) -> jax.Array:
    features, number = _features_of_takes(takes, times, row, column)
    share = _read(cotangent, row, column) / number
    values = share[:, None] * jnp.stack(features, axis=1)
    return slope.at[row].add(values, mode='drop')

  return takes.listed.fold(add, jnp.zeros_like(weights))


def _features_of_takes(
  takes: history.Takes, times: Array, row: Array, column: Array
) -> tuple[list[Array], Array]:
  """f32[n] features of takes' items, and how often each was taken, f32[n].

  Every take of an item has its share of what the item has.
  """
  number = jnp.maximum(_read(takes.number, row, column), 1)
  days = temporal.days_between(
    _read(times, row), _read(takes.last, row, column)
  )
  return _features(number, days), number


def _read(table: Array, *at: Array) -> jax.Array:
  """The table's values, 0 where it has no such row."""
  return jnp.asarray(table).at[at].get(mode='fill', fill_value=0)


def _add_everywhere(
  terms: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  return terms + _past(weights, takes, times)


def _sum_everywhere(
  cotangent: Array, weights: Array, takes: history.Takes, times: Array
) -> Array:
  past = lambda weights: _past(weights, takes, times)
  slope: Array = jax.vjp(past, weights)[1](cotangent)[0]
  return slope


def _past(weights: Array, takes: history.Takes, times: Array) -> Array:
  """f32[batch, columns], zero where the user did not take the item."""
  seen = takes.number > 0
  days = temporal.days_between(times[:, None], takes.last)
  features = _features(jnp.maximum(takes.number, 1), jnp.where(seen, days, 0.0))
  total = sum(
    weights[:, n, None] * feature for n, feature in enumerate(features)
  )
  return jnp.where(seen, total, 0.0)


def _features(number: Array, days: Array) -> list[Array]:
  """Of i32[...] takes, 1 or more, the last so many days ago, f32[...] each."""
  bends = [jnp.log1p(jnp.float32(bend)) for bend in _BENDS]
  log_days = jnp.log1p(days)
  return [
    jnp.ones_like(days),
    jnp.log(number.astype(jnp.float32)),
    log_days,
    *[jnp.maximum(log_days - bend, 0.0) for bend in bends],
  ]
