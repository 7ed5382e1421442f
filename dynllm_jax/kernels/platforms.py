"""One of two ways to compute the same, by the device that a program is for.

The choice is made when a program is lowered, so that a program for a device
that is not here gets that device's way.
"""

from collections.abc import Callable
from typing import Any

import jax


def on_gpu(
  function: Callable[..., Any], otherwise: Callable[..., Any], *args: Any
) -> Any:
  """`function(*args)` on a GPU, `otherwise(*args)` elsewhere."""
  return jax.lax.platform_dependent(
    *args, cuda=function, rocm=function, default=otherwise
  )


def on_cpu(
  function: Callable[..., Any], otherwise: Callable[..., Any], *args: Any
) -> Any:
  """`function(*args)` on a CPU, `otherwise(*args)` elsewhere."""
  return jax.lax.platform_dependent(*args, cpu=function, default=otherwise)
