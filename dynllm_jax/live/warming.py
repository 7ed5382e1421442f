"""What observing may run is compiled before anybody observes.

How many events come at once, how many are of one time, how many places of a
graph move: each is padded to a few sizes, and each size is a program. They are
run here on a copy of the state, which is forgotten.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.live import programs
from dynllm_jax.live.growing_graph import Writes
from dynllm_jax.live.live_state import Events
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.types import Pending


def steps(fork: LiveState, most: int | None = None) -> Iterator[None]:
  """Runs what events may run.

  Args:
    fork: of `LiveState.forked(texts=True)`; nobody else may have it.
    most: events of a call, up to which sizes are compiled; None: all sizes,
      and whatever else events may need.

  Yields:
    After each of a few programs.
  """
  # First, since tables of the copy may double below.
  if most is None:
    yield from _writes(fork)

  for size in programs.SIZES:
    if most is not None and size > most:
      return
    users = 1 + np.arange(size, dtype=np.int32) % fork.num_users
    items = 1 + np.arange(size, dtype=np.int32) % fork.num_items
    # A new time, and the same one again.
    times = np.full([size], fork.newest + 1, np.int64)
    for _ in range(2):
      fork.apply(Events(users, items, times))
      yield
  assert fork.pending is not None
  yield from _joins(fork.pending)


def _joins(pending: Pending) -> Iterator[None]:
  """Joins of however many events that wait with however many more."""

  def rows(count: int) -> Pending:
    # Of its own arrays, so that they lie where those of a batch do.
    return jax.tree.map(
      lambda x: jnp.broadcast_to(x[:1], (count, *x.shape[1:])) if x.ndim else x,
      pending,
    )

  largest = programs.bucket(2 * programs.MAX_BATCH)
  for waiting in (*programs.SIZES, largest):
    for more in programs.SIZES:
      for size in {programs.bucket(at + more) for at in (1, waiting)}:
        room = min(max(size, waiting), largest)
        programs.joined(rows(waiting), rows(more), np.int32(0), room)
    yield


def _writes(fork: LiveState) -> Iterator[None]:
  """Writes of however many places of the graphs, and of texts."""
  inputs = fork.bound.inputs
  graphs = jax.tree.map(jnp.copy, (inputs.user_graph, inputs.item_graph))
  nothing = np.zeros(0, np.int32)
  size = 8
  while size <= programs.MAX_WRITES:
    writes = programs.padded_writes(Writes(*[nothing] * 6), size)
    graphs = programs.write_graphs(graphs, (writes, writes))
    size = programs.bucket(size + 1)
    yield

  width = inputs.item_text.shape[1]
  for size in programs.SIZES:
    fork.set_texts(
      np.arange(1, 1 + min(size, fork.num_items)),
      np.zeros([min(size, fork.num_items), width], np.float16),
    )
    yield
