"""The settings of JAX that programs here are written for.

A shell may set others for other work: JAX_ENABLE_X64=1 makes numbers twice as
wide, JAX_DEFAULT_PRNG_IMPL=rbg draws with another generator. Both would change
what a checkpoint holds.
"""

from collections.abc import Iterator
import contextlib

import jax
import numpy as np

from dynllm_jax.types import InputError

_SETTINGS = {
  'jax_enable_x64': False,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
}


def pin() -> None:
  """Sets them for the process, which is the command's own."""
  for name, value in _SETTINGS.items():
    jax.config.update(name, value)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
  """Sets them for a while in this thread, of a program that has its own."""
  with (
    jax.enable_x64(False),
    jax.default_prng_impl('threefry2x32'),
    jax.threefry_partitionable(True),
  ):
    yield


def check() -> None:
  """Stops where numbers are twice as wide.

  Raises:
    InputError: naming the setting.
  """
  if jax.dtypes.canonicalize_dtype(np.float64) != np.float32:
    raise InputError(
      'JAX_ENABLE_X64: 1 is not allowed; allowed: 0, or dynllm_jax.train and '
      'the command, which set it for themselves'
    )
