"""A system whose scores no event changes: all that it knows is parameters."""

from collections.abc import Callable
from typing import Any

import jax

from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import Pending
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory


def build(
  feed: str,
  init: Callable[[jax.Array, Inputs], Params],
  embed: Callable[..., Any],
  **hooks: Any,
) -> System:
  """Makes the system; its only memory is what `propagate` computes.

  Args:
    feed: 'shuffled' or 'sequences'; 'stream' where `embed` reads what a user
      did lately.
    init: `(key, inputs) -> params`.
    embed: as `System.embed`.
    **hooks: optional fields of `System`.

  Returns:
    The system.
  """

  def init_both(
    key: jax.Array, inputs: Inputs, capacity: int
  ) -> tuple[Params, SystemMemory]:
    del capacity
    return init(key, inputs), ()

  def reset(memory: SystemMemory) -> SystemMemory:
    return memory

  def update(
    params: Params, memory: SystemMemory, inputs: Inputs, pending: Pending
  ) -> SystemMemory:
    del params, inputs, pending
    return memory

  return System(
    feed=feed,
    by_time=False,
    init=init_both,
    reset=reset,
    embed=embed,
    update=update,
    **hooks,
  )
