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


def with_gradient(
  on_device: Callable[..., Any],
  function: Callable[..., Any],
  otherwise: Callable[..., Any],
  *args: Any,
) -> Any:
  """`on_device(function, otherwise, *args)`, and the gradient of the same way.

  JAX's own gradient of a choice keeps what either way would need. This one
  keeps the arguments alone and computes the rest again: for what needs nothing
  else, such as products.

  Args:
    on_device: `on_gpu` or `on_cpu`.
    function, otherwise: of the arguments.
    *args: pytrees of arrays of floats.

  Returns:
    What the device's way returns.
  """

  @jax.custom_vjp
  def value(*args: Any) -> Any:
    return on_device(function, otherwise, *args)

  def forward(*args: Any) -> tuple[Any, Any]:
    return value(*args), args

  def backward(args: Any, grad: Any) -> Any:
    def pull(how: Callable[..., Any]) -> Callable[..., Any]:
      return lambda args, grad: jax.vjp(how, *args)[1](grad)

    return on_device(pull(function), pull(otherwise), args, grad)

  value.defvjp(forward, backward)
  return value(*args)
