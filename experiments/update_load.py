"""What the ordered update asks of the busiest device, counted on a log.

A node's updates are a chain, and steps along a chain cannot run at once: what
a step of training costs there follows from the log's skew, which no compiler
sees. Here it is counted from the events, by numpy; nothing is compiled.
"""

from typing import NamedTuple

import jax
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import prepare
from dynllm_jax.datasets.sources import simulated
from dynllm_jax.engine import batching
from dynllm_jax.graph import update_chains
from dynllm_jax.parallel import owners
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import EventLog
from dynllm_jax.types import OwnLimits


class Load(NamedTuple):
  """What one training step asks of the busiest device; means over batches.

  Attributes:
    longest: updates of the longest chain.
    shared: iterations of the update's loops, forward and backward, where each
      device applies the events of its own nodes. Both sides step together.
    alone: the same where every device applies all events.
    events: of one side that fall to the busiest device.
    rounds: in which a device has an answer to each of its questions about the
      items of its events.
  """

  longest: float
  shared: float
  alone: float
  events: float
  rounds: float


def simulated_log(size: str = 'tmall') -> EventLog:
  """A simulated log of a paper's size (SPEC 2.3)."""
  config = config_lib.default('dynllm')
  config.data.size = size
  return prepare.prepare(simulated.read(config.data), config.data)


def iterations(lengths: np.ndarray, block: int) -> int:
  """Steps of the loop along some chains, without the first of all rows.

  Args:
    lengths: i64[chains], updates of each chain.
    block: rows that a step updates.
  """
  longer = np.cumsum(np.bincount(lengths)[::-1])[::-1]  # [r]: of r or more
  return int(np.sum(-(-longer[2:] // block)))


def limits(log: EventLog, batch_size: int, shape: tuple[int, int]) -> OwnLimits:
  """How much of any update falls to one device of a mesh `data` x `nodes`."""
  plan = batching.plan_batches(log.times, 0, log.num_events, batch_size)
  mesh = jax.sharding.AbstractMesh(shape, ('data', 'nodes'))
  return owners.limits_of(log, plan.batches, batch_size, mesh)


def load(
  log: EventLog,
  batch_size: int,
  shape: tuple[int, int],
  block: int = update_chains.WIDE_BLOCK,
) -> Load:
  """Counts what a step asks of the busiest device.

  Args:
    log: the prepared log.
    batch_size: events of a step, over all devices.
    shape: of the mesh, `data` x `nodes`; its devices need not be there.
    block: rows that a step of the update's loop updates.

  Returns:
    The load.
  """
  plan = batching.plan_batches(log.times, 0, log.num_events, batch_size)
  full = [batch for batch in plan.batches if batch.size > batch_size // 2]
  rows = []
  for batch in full:
    at = slice(batch.start, batch.start + batch.size)
    alone, longest, events = 0, 0, 0
    by_device = np.zeros(shape[0] * shape[1], np.int64)
    for ids, count in ((log.users, log.num_users), (log.items, log.num_items)):
      nodes, lengths = np.unique(
        np.unique(np.stack([ids[at], log.times[at]]), axis=1)[0],
        return_counts=True,
      )
      alone = max(alone, iterations(lengths, block))
      longest = max(longest, lengths.max())
      owner = owners.owner_of(nodes, count, shape)
      for device in np.unique(owner):
        own = iterations(lengths[owner == device], block)
        by_device[device] = max(by_device[device], own)
      events = max(
        events, np.bincount(owners.owner_of(ids[at], count, shape)).max()
      )
    rows.append(
      [
        longest,
        2 * by_device.max(),
        2 * alone,
        events,
        _rounds(log.items[at], log.num_items, shape),
      ]
    )
  return Load(*np.mean(np.array(rows, float), axis=0).tolist())


def _rounds(items: np.ndarray, count: int, shape: tuple[int, int]) -> int:
  """Rounds in which all questions about a batch's items are answered.

  Args:
    items: i32[events].
    count: items of the catalogue.
    shape: of the mesh.
  """
  devices, shards = shape[0] * shape[1], shape[1]
  part = -(-len(items) // devices)
  room = -(-sharded_table.ROOM * part // shards)
  pair = np.arange(len(items)) // part * shards
  pair += owners.owner_of(items, count, (1, shards))
  return -(-int(np.bincount(pair).max()) // room)
