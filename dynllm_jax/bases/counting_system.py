"""A system that learns nothing: it counts events as they go by (SPEC 6)."""

from collections.abc import Callable
from typing import Any

import jax

from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import UserEmbeddings


def build(
  init: Callable[[Inputs], SystemMemory],
  reset: Callable[[SystemMemory], SystemMemory],
  embed: Callable[..., tuple[UserEmbeddings, ItemEmbeddings]],
  update: Callable[[SystemMemory, Inputs, EventBatch], SystemMemory],
) -> System:
  """Makes the system; it has no parameters and advances at every distinct time.

  Args:
    init: `(inputs) -> memory` before the first event.
    reset: `(memory) -> memory` as before the first event.
    embed: `(memory, inputs, users, user_times, items, item_time) ->
      UserEmbeddings, ItemEmbeddings`, as `System.embed`.
    update: `(memory, inputs, events) -> memory` after the events whose mask
      is True.

  Returns:
    The system.
  """

  def init_both(
    key: jax.Array, inputs: Inputs, capacity: int
  ) -> tuple[Params, SystemMemory]:
    del key, capacity
    return {}, init(inputs)

  def embed_at(
    params: Params, memory: SystemMemory, inputs: Inputs, *query: Any
  ) -> tuple[UserEmbeddings, ItemEmbeddings]:
    del params
    *nodes_and_times, key = query
    del key
    return embed(memory, inputs, *nodes_and_times)

  def update_by(
    params: Params, memory: SystemMemory, inputs: Inputs, pending: Pending
  ) -> SystemMemory:
    del params
    return update(memory, inputs, pending.events)

  return System(
    feed='none',
    by_time=True,
    init=init_both,
    reset=reset,
    embed=embed_at,
    update=update_by,
  )
