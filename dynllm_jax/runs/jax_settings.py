"""The settings of JAX that programs here are written for.

A shell may set others for other work: JAX_ENABLE_X64=1 makes numbers twice as
wide, JAX_DEFAULT_PRNG_IMPL=rbg draws with another generator, an offset moves
every seed. These would change what a checkpoint holds; strict promotion and
guards of transfers would end a program that is right without them.
"""

from collections.abc import Iterator
import contextlib
import gc
import importlib.util
import os

import jax
import numpy as np

from dynllm_jax.types import InputError

_SETTINGS = {
  'jax_enable_x64': False,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_random_seed_offset': 0,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_numpy_rank_promotion': 'allow',
  'jax_transfer_guard': 'allow',
}

# CUDA graphs for loops and branches, too: without them the host launches every
# kernel of a loop, and waits for the device to hear whether a round follows.
CUDA_GRAPHS = (
  '--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,'
  'DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL'
)
# XLA before openxla/xla pull request 35760 crashes when a loop's graph runs for
# the second time; this is the first jaxlib of which it is known that it does
# not, since it ran here.
_GRAPHS_SINCE = (0, 11)

# Of `gc.set_threshold`. A trace makes millions of small objects that stay:
# looking through them as often as Python would takes a quarter of its time.
COLLECT_EVERY = (100_000, 20, 20)


def pin() -> None:
  """Sets them for the process, which is the command's own.

  To be called before JAX looks for devices.
  """
  gc.set_threshold(*COLLECT_EVERY)
  use_cuda_graphs()
  for name, value in _SETTINGS.items():
    jax.config.update(name, value)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
  """Sets them for a while, of a program that has its own.

  Other threads keep theirs, but for an offset of seeds, which JAX has for all.
  """
  offset = jax.config.values['jax_random_seed_offset']
  with contextlib.ExitStack() as stack:
    if offset:
      stack.callback(jax.config.update, 'jax_random_seed_offset', offset)
      jax.config.update('jax_random_seed_offset', 0)
    for setting in (
      jax.enable_x64(False),
      jax.default_prng_impl('threefry2x32'),
      jax.threefry_partitionable(True),
      jax.numpy_dtype_promotion('standard'),
      jax.numpy_rank_promotion('allow'),
      jax.transfer_guard('allow'),
    ):
      stack.enter_context(setting)
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


def use_cuda_graphs() -> None:
  """Sets CUDA_GRAPHS in XLA_FLAGS, where XLA would read and bear it.

  What the environment says of command buffers itself stays as it is.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  has_cuda = any(
    importlib.util.find_spec(f'jax_cuda{version}_plugin')
    for version in (12, 13)
  )
  name = CUDA_GRAPHS.partition('=')[0]
  if (
    has_cuda and name not in flags and jax.__version_info__[:2] >= _GRAPHS_SINCE
  ):
    os.environ['XLA_FLAGS'] = f'{flags} {CUDA_GRAPHS}'.strip()
