"""Negatives: items that the user does not take at that time (SPEC 3.9)."""

import jax
import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.graph import temporal
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Inputs

NEGATIVES = ('uniform', 'sold', 'popularity', 'batch')


def sample_negatives(
  key: Array, inputs: Inputs, events: Array, shape: tuple[int, ...], how: str
) -> tuple[Array, Array]:
  """Draws negatives that the event's user does not take at its time.

  An item that is not allowed is drawn again, three times at most.

  Args:
    key: random key.
    inputs: for the catalogue, the training events and the user's own items.
    events: i32[batch], positions in the log.
    shape: [batch, negatives] for negatives of each event's own, or [negatives]
      where the batch shares them.
    how: 'uniform' over the catalogue; 'sold', uniform over what has been sold
      by the event's time (by that of the batch's last event, where the batch
      shares them); 'popularity', in proportion to training events; or 'batch',
      uniform too, beside the batch's own items (`weigh_catalogue`).

  Returns:
    i32[shape] items, and bool[batch, negatives], which of them are allowed.
  """
  tries = 4 if len(shape) == 2 else 1  # a shared one may suit other events
  if how == 'popularity':
    drawn = sharded_table.read_rows(
      inputs.items,
      jax.random.randint(key, (tries, *shape), 0, inputs.train_events),
    )
  else:
    largest: Array | int = inputs.num_items
    if how == 'sold':
      assert inputs.sold is not None
      sold = sharded_table.read_rows(inputs.sold, events)
      largest = jnp.max(sold) if len(shape) == 1 else sold[:, None]
    drawn = jax.random.randint(key, (tries, *shape), 1, largest + 1, jnp.int32)

  if len(shape) == 1:
    taken = temporal.takes_of_shared(
      inputs.same_time, events, drawn[0], inputs.num_items
    )
    return drawn[0], ~taken

  # All tries are looked up at once, [batch, tries x negatives].
  each = jnp.moveaxis(drawn, 0, 1)
  taken = temporal.takes_at_that_time(
    inputs.same_time, events, each.reshape(len(events), -1)
  )
  taken = jnp.moveaxis(taken.reshape(each.shape), 1, 0)

  # The first try that is allowed; the last one, not allowed, if none is.
  first = jnp.where(taken.all(0), tries - 1, jnp.argmin(taken, axis=0))
  chosen = jnp.take_along_axis(drawn, first[None], axis=0)[0]
  return chosen, ~taken.all(0)


def weigh_catalogue(
  items: Array, num_own: int, num_items: int
) -> tuple[Array, Array]:
  """How many items of the catalogue each candidate stands for.

  Those of the batch stand for themselves, however often they occur. What was
  drawn beside them, and is none of them, stands for all the others together.

  Args:
    items: i32[candidates], first the batch's own, 0 where there are fewer, then
      what was drawn uniformly.
    num_own: of the batch's own, places without an item included.
    num_items: of the catalogue.

  Returns:
    bool[candidates], which of them stand for anything, and f32[candidates], the
    logarithms of how many items that is.
  """
  _, column = columns.of_candidates(items, num_items)
  index = jnp.arange(len(items))
  own = (index < num_own) & (column == index) & (items > 0)
  drawn = (index >= num_own) & (column >= num_own)
  others = jnp.maximum(num_items - jnp.sum(own), 1)
  share = jnp.log(others / jnp.maximum(jnp.sum(drawn), 1))
  return own | drawn, jnp.where(drawn, share, 0.0)
