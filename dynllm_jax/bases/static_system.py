"""A system whose scores no event changes: all that it knows is parameters."""

from collections.abc import Callable
from typing import Any

from dynllm_jax.types import System


def build(
  feed: str, init: Callable[..., Any], embed: Callable[..., Any], **hooks: Any
) -> System:
  """Makes the system; it has no memory but what `propagate` computes.

  Args:
    feed: 'shuffled' or 'sequences'; 'stream' where `embed` reads what a user
      did lately.
    init: `(key, inputs) -> params`.
    embed: as `System.embed`.
    **hooks: optional fields of `System`.

  Returns:
    The system.
  """

  def init_both(key, inputs, capacity):
    del capacity
    return init(key, inputs), ()

  def reset(memory):
    return memory

  def update(params, memory, inputs, pending):
    del params, inputs, pending
    return memory

  return System(feed, False, init_both, reset, embed, update, **hooks)
