"""A Flax network as functions of its parameters."""

from typing import Any

from flax import linen as nn
import jax

from dynllm_jax.types import Params


def init_params(
  network: nn.Module, key: jax.Array, *args: Any, **kwargs: Any
) -> Params:
  """Draws the network's parameters.

  Args:
    network: takes `deterministic`, whether dropout is off.
    key: from which they are drawn.
    *args: arguments of a call, such as the network will get.
    **kwargs: the same; `method` names another than `__call__`.
  """
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
    *args: arguments of the call.
    key: of dropout; None turns dropout off.
    **kwargs: the same; `method` names another than `__call__`.
  """
  return network.apply(
    {'params': params},
    *args,
    deterministic=key is None,
    rngs=None if key is None else {'dropout': key},
    **kwargs,
  )
