"""A Flax network as functions of its parameters."""

from typing import Any

from flax import linen as nn
import jax

from dynllm_jax.types import Params


def init_params(
  network: nn.Module, key: jax.Array, *args: Any, **kwargs: Any
) -> Params:
  """The network's parameters, drawn with a key for a call without dropout."""
  return network.init(key, *args, deterministic=True, **kwargs)['params']


def call(
  network: nn.Module,
  params: Params,
  *args: Any,
  key: jax.Array | None,
  **kwargs: Any,
) -> Any:
  """What the network returns.

  Args:
    network: takes `deterministic`, whether dropout is off.
    params: of the network.
    *args: of the call.
    key: of dropout; None for none.
    **kwargs: of the call; `method` names another than `__call__`.
  """
  return network.apply(
    {'params': params},
    *args,
    deterministic=key is None,
    rngs=None if key is None else {'dropout': key},
    **kwargs,
  )
