"""Facet texts that exceed the device's budget.

They stay on the host, and the device has those of one chunk of batches at a
time.
"""

import functools
import mmap
from typing import Any

import jax
import numpy as np

from dynllm_jax import checks
from dynllm_jax.checks import Rule
from dynllm_jax.engine.batching import BatchPlan
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import FacetBank
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs

_NO_ROW = np.iinfo(np.int32).max
_BLOCK = 1024  # rows that are read before their pages are released

RULE = Rule('device_gib', '0 or more', lambda gib: gib >= 0)


def split(
  bank: FacetBank, wanted: bool, device_gib: float
) -> tuple[FacetBank, np.ndarray | None]:
  """Decides where the texts of a bank are kept.

  Args:
    bank: numpy arrays, mapped from disk or not.
    wanted: whether the system reads facets.
    device_gib: `config.facets.device_gib`, what texts may take of the device.

  Returns:
    The bank for the device, and the texts that stay on the host; None where
    the device has all or none is read.

  Raises:
    InputError: if the budget is not a number of GiB.
  """
  if not RULE.holds(device_gib):
    raise checks.not_allowed(
      'config.facets.device_gib', device_gib, RULE.allowed
    )
  if wanted and bank.texts.nbytes <= device_gib * 2**30:
    return bank, None
  few = bank.replace(texts=bank.texts[:1], present=np.zeros(1, np.int32))
  return few, np.asarray(bank.texts) if wanted else None


def with_texts(
  inputs: Inputs, texts: np.ndarray | None, chunk: BatchPlan
) -> Inputs:
  """The inputs with all texts that a chunk of batches can read.

  Memory and work follow the events of the chunk, not the bank. The number of
  rows is rounded up to a power of two, so that few shapes are compiled.

  Args:
    inputs: on the device, with the bank that `split` returned.
    texts: f16[unique_texts, llm_dim] on the host; None changes nothing.
    chunk: chronological batches, together one range of the log.

  Returns:
    The inputs.

  Raises:
    InputError: if the batches are not chronological.
  """
  if texts is None:
    return inputs
  if chunk.events is not None:
    raise InputError(
      f'config.facets.device_gib: facets of {texts.nbytes / 2**30:.3g} GiB '
      'are beyond it, and a system that is not fed by the stream reads them '
      'in no order; allowed: as many GiB or more'
    )
  size = min(len(chunk.batches) * chunk.batch_size, len(inputs.users))
  start = min(int(chunk.batches.start[0]), len(inputs.users) - size)
  return _with_rows(inputs, texts, _rows(inputs, start, size))


def with_texts_of(
  inputs: Inputs, texts: np.ndarray | None, users: Array, times: Array
) -> Inputs:
  """The inputs with all texts that serve some users at some times.

  Args:
    inputs, texts: as in `with_texts`.
    users: i32[n].
    times: i32[n], seconds.
  """
  if texts is None:
    return inputs
  return _with_rows(inputs, texts, rows_of(inputs, users, times))


def _with_rows(inputs: Inputs, texts: np.ndarray, rows: Array) -> Inputs:
  """The inputs with these rows of all texts, and row 0."""
  present = np.unique(np.append(rows, 0))

  # A power of two, rounded up to blocks of equal size, one for each device that
  # shares the table; their number need not divide a power of two.
  bank = inputs.facets
  assert isinstance(bank.texts, jax.Array)
  assert isinstance(inputs.train_events, jax.Array)
  one = bank.texts.sharding.shard_shape(bank.texts.shape)[0]
  blocks = len(bank.texts) // one
  padding = (1 << (len(present) - 1).bit_length()) - len(present)
  padding += -(len(present) + padding) % blocks

  return inputs.replace(
    facets=bank.replace(
      texts=_put_on_devices(
        bank.texts.sharding,
        np.pad(read_texts(texts, present), [(0, padding), (0, 0)]),
      ),
      present=_put_on_devices(
        inputs.train_events.sharding,
        np.pad(present.astype(np.int32), (0, padding), constant_values=_NO_ROW),
      ),
    )
  )


def _put_on_devices(
  sharding: jax.sharding.Sharding, value: np.ndarray
) -> jax.Array:
  """Puts a host array on the devices; every process puts what its own hold."""
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def read_texts(texts: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Rows of a table, which may be mapped from a file.

  Every page that was once read counts as the process's memory, and so do those
  beside it. A table that is read at random would soon count as a whole, so
  pages are released; the operating system keeps them while it has room.

  Args:
    texts: f16[unique_texts, llm_dim].
    rows: i[rows], of the table.

  Returns:
    f16[rows, llm_dim].
  """
  mapping: Any = texts
  while isinstance(mapping, np.ndarray):
    mapping = mapping.base

  out = np.empty((len(rows), texts.shape[1]), texts.dtype)
  for first in range(0, len(rows), _BLOCK):
    block = slice(first, first + _BLOCK)
    out[block] = texts[rows[block]]
    if isinstance(mapping, mmap.mmap):
      mapping.madvise(mmap.MADV_DONTNEED)
  return out


@functools.partial(jax.jit, static_argnums=2)
def _rows(inputs: Inputs, start: int, size: int) -> Array:
  """i32[size, 4], rows of all texts that `size` events of the log read."""
  users, times = sharded_table.read_slice(
    (inputs.users, inputs.times), start, size
  )
  return sharded_table.replicate(lookup(inputs.facets, users, times))


@jax.jit
def rows_of(inputs: Inputs, users: Array, times: Array) -> Array:
  """Rows of all texts that serve users, in the order of FACETS; 0: unknown.

  Args:
    inputs: on the device.
    users: i32[n].
    times: i32[n], seconds.

  Returns:
    i32[n, 4].
  """
  return sharded_table.replicate(lookup(inputs.facets, users, times))
