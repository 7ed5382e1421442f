"""Temporal neighborhoods that grow: a CSR whose rows have room (SPEC 10.2).

The host lays rows out and says which places of the device's tables change; the
device writes those places and nothing else. A row that is full moves to the
tables' end with twice the room, and tables that are full double. An event costs
the host a few numbers and the device a few places, however long the log is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dynllm_jax.types import TemporalGraph

_LEAST_ROOM = 4  # places of a row that is given room


class Writes(NamedTuple):
  """What the device has to write; every array has its columns' length.

  Attributes:
    places: i32[events], positions in the tables.
    neighbors, times: i32[events], what stands there.
    nodes: i32[nodes], rows that changed.
    starts, ends: i32[nodes], where they lie.
  """

  places: np.ndarray
  neighbors: np.ndarray
  times: np.ndarray
  nodes: np.ndarray
  starts: np.ndarray
  ends: np.ndarray


class GrowingGraph:
  """The host's side of one temporal CSR: its layout, and a copy of it.

  Attributes:
    neighbors, times: i32[capacity], as the device's tables.
    starts, ends: i32[nodes], as the device's; node 0 is padding.

  Args:
    nodes, neighbors, times: i32[events], of the side's own node, the other
      side's, and seconds, ascending.
    num_nodes: nodes of this side, padding not counted.
  """

  def __init__(
    self,
    nodes: np.ndarray,
    neighbors: np.ndarray,
    times: np.ndarray,
    num_nodes: int,
  ) -> None:
    order = np.argsort(nodes, kind='stable')
    lengths = np.bincount(nodes, minlength=num_nodes + 1)
    rooms = np.where(lengths > 0, lengths + lengths // 4 + _LEAST_ROOM, 0)
    last = np.cumsum(rooms)
    self.starts = (last - rooms).astype(np.int32)
    self.ends = (self.starts + lengths).astype(np.int32)
    self._rooms = rooms.astype(np.int64)
    self._used = int(last[-1])

    # As much again is free: where the tables double, every program that reads
    # them is compiled anew.
    capacity = max(1024, 2 * self._used)
    self.neighbors = np.zeros(capacity, np.int32)
    self.times = np.zeros(capacity, np.int32)
    firsts = np.cumsum(lengths) - lengths
    places = np.arange(len(order)) + np.repeat(self.starts - firsts, lengths)
    self.neighbors[places] = neighbors[order]
    self.times[places] = times[order]
    self._longest = int(lengths.max(initial=0))

  @property
  def longest(self) -> int:
    """A bound on the length of a row, which changes seldom.

    The device's searches take as many rounds as the bound has bits; it is one
    more than is needed, so that rows may double before anything is compiled.
    """
    return (2 << max(8, self._longest.bit_length())) - 1

  def device_graph(self) -> TemporalGraph:
    """The graph as readers want it (graph/temporal.py), of numpy arrays."""
    return TemporalGraph(
      offsets=np.append(self.starts, np.int32(0)),
      neighbors=self.neighbors.copy(),
      times=self.times.copy(),
      longest=self.longest,
      ends=self.ends.copy(),
    )

  def arrays(self) -> dict[str, np.ndarray]:
    """A copy of all that there is, by name, as `from_arrays` takes it."""
    return {
      'starts': self.starts.copy(),
      'ends': self.ends.copy(),
      'rooms': self._rooms.copy(),
      'neighbors': self.neighbors.copy(),
      'times': self.times.copy(),
      'used_and_longest': np.array([self._used, self._longest], np.int64),
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'GrowingGraph':
    """The graph whose `arrays` these are; they become its own.

    Raises:
      KeyError: if one is missing.
    """
    nothing = np.zeros(0, np.int32)
    graph = cls(nothing, nothing, nothing, 0)
    graph.starts, graph.ends = arrays['starts'], arrays['ends']
    graph._rooms = arrays['rooms']
    graph.neighbors, graph.times = arrays['neighbors'], arrays['times']
    graph._used, graph._longest = map(int, arrays['used_and_longest'])
    return graph

  def row(self, node: int) -> tuple[np.ndarray, np.ndarray]:
    """A node's neighbors and times, oldest first."""
    row = slice(self.starts[node], self.ends[node])
    return self.neighbors[row], self.times[row]

  def before(
    self, node: int, time: int, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `temporal.neighborhood`: the latest `count`, most recent first."""
    neighbors, times = self.row(node)
    end = int(np.searchsorted(times, time, side='left'))
    latest = slice(max(0, end - count), end)
    return neighbors[latest][::-1], times[latest][::-1]

  def add_nodes(self, num_nodes: int) -> None:
    """Makes room for nodes up to `num_nodes`, padding not counted."""
    more = num_nodes + 1 - len(self.starts)
    pad = lambda x: np.pad(x, (0, more))
    self.starts, self.ends = pad(self.starts), pad(self.ends)
    self._rooms = pad(self._rooms)

  def append(
    self, nodes: np.ndarray, neighbors: np.ndarray, times: np.ndarray
  ) -> Writes | None:
    """Appends events; each is as late as its row's last, or later.

    Args:
      nodes, neighbors, times: i32[events].

    Returns:
      What the device has to write; None where the tables doubled and all of
      them is to be taken anew from `device_graph`.
    """
    order = np.argsort(nodes, kind='stable')
    changed, counts = np.unique(nodes, return_counts=True)
    lengths = self.ends[changed] - self.starts[changed]
    needed = lengths + counts
    full = needed > self._rooms[changed]
    rooms = 2 * needed + _LEAST_ROOM
    doubles = self._make_room(int(rooms[full].sum()))

    # Full rows move, each as a whole.
    moved = []
    for node, length, room in zip(changed[full], lengths[full], rooms[full]):
      old = slice(self.starts[node], self.ends[node])
      new = slice(self._used, self._used + length)
      self.neighbors[new], self.times[new] = (
        self.neighbors[old],
        self.times[old],
      )
      self.starts[node], self.ends[node] = new.start, new.stop
      self._rooms[node] = room
      self._used += int(room)
      moved.append(np.arange(new.start, new.stop))

    firsts = np.cumsum(counts) - counts
    places = np.arange(len(order)) + np.repeat(
      self.ends[changed] - firsts, counts
    )
    self.neighbors[places] = neighbors[order]
    self.times[places] = times[order]
    self.ends[changed] += counts.astype(np.int32)
    bound = self.longest
    self._longest = max(self._longest, int(needed.max(initial=0)))
    if doubles or self.longest != bound:
      return None

    places = np.concatenate([*moved, places]).astype(np.int32)
    return Writes(
      places=places,
      neighbors=self.neighbors[places],
      times=self.times[places],
      nodes=changed.astype(np.int32),
      starts=self.starts[changed],
      ends=self.ends[changed],
    )

  def _make_room(self, more: int) -> bool:
    """Doubles the tables until so many places are free; whether it had to."""
    capacity = len(self.times)
    while self._used + more > capacity:
      capacity *= 2
    if capacity == len(self.times):
      return False
    pad = (0, capacity - len(self.times))
    self.neighbors = np.pad(self.neighbors, pad)
    self.times = np.pad(self.times, pad)
    return True
