"""The counts that the terms of SPEC 3.12 read, as state beside the memory."""

import jax
import jax.numpy as jnp

from dynllm_jax.graph import recency
from dynllm_jax.graph import successors
from dynllm_jax.graph import temporal
from dynllm_jax.types import Counts
from dynllm_jax.types import EventBatch
from dynllm_jax.types import TemporalGraph


def empty(num_items: int, num_kept: int) -> Counts:
  """The counts before the first event.

  Args:
    num_items: of the catalogue.
    num_kept: successors that are kept of an item, or 0 (successors.py).
  """
  return Counts(recency.empty(num_items), successors.empty(num_items, num_kept))


def reset(counts: Counts) -> Counts:
  """The counts as before the first event."""
  return Counts(
    recency.empty(len(counts.recency.time) - 1),
    jax.tree.map(jnp.zeros_like, counts.successors),
  )


def add(
  counts: Counts, user_graph: TemporalGraph, events: EventBatch, depth: int
) -> Counts:
  """Counts some events.

  An event on an item counts `1 / (k + 1)` as a successor of the item of its
  user's k-th last event, strictly earlier: the lines of one invoice do not
  follow each other.

  Args:
    counts: of the events before these.
    user_graph: of which strictly earlier events are read.
    events: those whose `mask` is False are left out.
    depth: how many of a user's last events have this one as a successor.

  Returns:
    The counts.
  """
  past = temporal.neighborhood(user_graph, events.users, events.times, depth)
  mask = past.mask & events.mask[:, None]
  weights = jnp.broadcast_to(1.0 / jnp.arange(1, depth + 1), mask.shape)
  following = jnp.broadcast_to(events.items[:, None], mask.shape)
  return Counts(
    recency.add(counts.recency, events),
    successors.add(
      counts.successors,
      past.nodes.reshape(-1),
      following.reshape(-1),
      weights.reshape(-1),
      mask.reshape(-1),
    ),
  )
