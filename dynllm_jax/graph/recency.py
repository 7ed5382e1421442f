"""How much each item is taken these days, by half-lives (SPEC 3.12).

An update costs as much as its events, not as the catalogue: a value is decayed
when it is read or written. The highest value of all items is carried along:
all values of a half-life decay alike, so that only an event can overtake it.
"""

import jax.numpy as jnp

from dynllm_jax.graph import temporal
from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Recency

HALF_LIVES = (1.0, 7.0, 30.0, 180.0)  # days
_NO_ROW = jnp.iinfo(jnp.int32).max  # an index that a scatter drops


def empty(num_items: int) -> Recency:
  """Before the first event (padding row included)."""
  return Recency(
    value=jnp.zeros([num_items + 1, len(HALF_LIVES)], jnp.float32),
    time=jnp.zeros([num_items + 1], jnp.int32),
    first=jnp.full([num_items + 1], -1, jnp.int32),
    most=jnp.zeros([len(HALF_LIVES)], jnp.float32),
    most_time=jnp.int32(0),
  )


def shares(recency: Recency, items: Array, time: Array) -> Array:
  """Values over the highest of all items.

  Args:
    recency: of events up to that time.
    items: i32[candidates].
    time: i32[], seconds.

  Returns:
    f32[candidates, half-lives], 0 to 1; all zero before the first event.
  """
  value = recency.value[items] * _decay(time, recency.time[items])
  most = recency.most * _decay(time, recency.most_time)
  # Long after the last event both are zero, and so is the share.
  return value / jnp.maximum(most, jnp.finfo(most.dtype).tiny)


def age_days(recency: Recency, items: Array, time: Array) -> Array:
  """Days since each item's first event, f32[candidates]; -1 without one.

  Args:
    recency: of events up to that time.
    items: i32[candidates].
    time: i32[], seconds.
  """
  first = recency.first[items]
  return jnp.where(first >= 0, temporal.days_between(time, first), -1.0)


def add(recency: Recency, events: EventBatch) -> Recency:
  """Counts some events.

  Args:
    recency: of the events before these.
    events: those whose `mask` is False are left out; several may be of one
      item.

  Returns:
    Recency as of the latest of each item's events.
  """
  row = jnp.where(events.mask, events.items, _NO_ROW)
  time = jnp.asarray(recency.time).at[row].max(events.times, mode='drop')
  latest = time[events.items]
  carried = recency.value[events.items] * _decay(
    latest, recency.time[events.items]
  )
  # Events of one item all set the same value before each adds its own.
  value = jnp.asarray(recency.value).at[row].set(carried, mode='drop')
  value = row_sums.add_to_rows(value, row, _decay(latest, events.times))

  most_time = jnp.maximum(
    recency.most_time, jnp.max(jnp.where(events.mask, events.times, 0))
  )
  now = value[events.items] * _decay(most_time, latest)
  most = jnp.maximum(
    recency.most * _decay(most_time, recency.most_time),
    jnp.max(jnp.where(events.mask[:, None], now, 0.0), axis=0),
  )

  # An item's first event stays: unsigned, -1 is above all times.
  first = jnp.asarray(recency.first, jnp.uint32)
  first = first.at[row].min(jnp.asarray(events.times, jnp.uint32), mode='drop')
  return Recency(value, time, jnp.asarray(first, jnp.int32), most, most_time)


def _decay(later: Array, earlier: Array) -> Array:
  """f32[..., half-lives], what is left of an event."""
  days = temporal.days_between(later, earlier)[..., None]
  return jnp.exp2(-days / jnp.array(HALF_LIVES))
