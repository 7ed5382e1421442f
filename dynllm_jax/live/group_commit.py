"""Many small writes as few large ones.

A commit costs a wait for the disk, however much is committed. Whatever comes in
while one commit is under way is done by the next one, all together: a single
caller waits for nobody, and a hundred callers share a commit.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import threading
from typing import Generic
from typing import TypeVar

_Request = TypeVar('_Request')
_Result = TypeVar('_Result')


@dataclasses.dataclass(eq=False)
class _Waiting(Generic[_Request, _Result]):
  """A request, and what came of it; without one, a pause."""

  request: _Request | None
  size: int
  outcome: '_Result | Exception | None' = None
  is_done: bool = False
  wake: threading.Event = dataclasses.field(default_factory=threading.Event)


class GroupCommit(Generic[_Request, _Result]):
  """Does requests of any number of threads, in the order in which they came.

  Whichever thread finds nobody at work does its own request and all that wait
  behind it, then leaves the work to the first of those that have come
  meanwhile; there is no thread of its own.

  Args:
    commit: `(requests) -> outcomes`, one for each: a result, or an exception
      for that request alone. What it raises is raised to all of them.
    most: the sizes of requests that are done together add up to this at most;
      a larger one is done alone.
  """

  def __init__(
    self,
    commit: Callable[[Sequence[_Request]], Sequence[_Result | Exception]],
    most: int,
  ) -> None:
    self._commit = commit
    self._most = most
    self._queue: deque[_Waiting[_Request, _Result]] = deque()
    self._is_busy = False
    self._lock = threading.Lock()  # of the queue, never held for long

  def do(self, request: _Request, size: int = 1) -> _Result:
    """Does a request, with others that wait.

    Args:
      request: for `commit`.
      size: such as its number of events.

    Returns:
      What came of it.

    Raises:
      Exception: what `commit` raised or returned for it.
    """
    mine = _Waiting[_Request, _Result](request, size)
    self._enter(mine)
    if not mine.is_done:
      try:
        self._do_first()
      finally:
        self._leave()
    if isinstance(mine.outcome, Exception):
      raise mine.outcome
    return mine.outcome  # type: ignore[return-value]

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A context in which nothing is done; requests wait for its end."""
    self._enter(_Waiting[_Request, _Result](None, 0))
    with self._lock:
      self._queue.popleft()
    try:
      yield
    finally:
      self._leave()

  def _enter(self, mine: _Waiting[_Request, _Result]) -> None:
    """Waits until a request is done, or is the first and nobody is at work."""
    with self._lock:
      self._queue.append(mine)
      if not self._is_busy:
        self._is_busy = True
        return
    mine.wake.wait()

  def _leave(self) -> None:
    """Leaves the work to whoever has waited longest."""
    with self._lock:
      if self._queue:
        self._queue[0].wake.set()
      else:
        self._is_busy = False

  def _do_first(self) -> None:
    """Does the first request, and what waits behind it as it fits."""
    with self._lock:
      group = [self._queue.popleft()]
      total = group[0].size
      while self._queue and self._queue[0].request is not None:
        total += self._queue[0].size
        if total > self._most:
          break
        group.append(self._queue.popleft())

    outcomes: Sequence[_Result | Exception]
    try:
      outcomes = self._commit(
        [waiting.request for waiting in group if waiting.request is not None]
      )
    except Exception as error:  # whoever waits has to hear of it
      outcomes = [error] * len(group)
    except BaseException:  # this thread is interrupted, and no other
      self._finish(
        group, [RuntimeError('the commit was interrupted')] * len(group)
      )
      raise
    self._finish(group, outcomes)

  def _finish(
    self,
    group: Sequence[_Waiting[_Request, _Result]],
    outcomes: Sequence[_Result | Exception],
  ) -> None:
    """Gives each request what came of it."""
    for waiting, outcome in zip(group, outcomes, strict=True):
      waiting.outcome, waiting.is_done = outcome, True
      waiting.wake.set()
