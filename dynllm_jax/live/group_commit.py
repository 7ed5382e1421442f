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
  """A request, and what came of it."""

  request: _Request
  size: int
  outcome: '_Result | Exception | None' = None
  is_done: bool = False


class GroupCommit(Generic[_Request, _Result]):
  """Does requests of any number of threads, in the order in which they came.

  Whichever thread finds nobody at work does all that waits, its own request
  and those of others; there is no thread of its own.

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
    self._turn = threading.Lock()

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
    self._queue.append(mine)
    with self._turn:
      while not mine.is_done:
        self._do_next()
    if isinstance(mine.outcome, Exception):
      raise mine.outcome
    return mine.outcome  # type: ignore[return-value]

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """A context in which nothing is done; requests wait for its end."""
    with self._turn:
      yield

  def _do_next(self) -> None:
    """Does what waits at the front, as much as goes together."""
    group = [self._queue.popleft()]
    total = group[0].size
    while self._queue and total + self._queue[0].size <= self._most:
      group.append(self._queue.popleft())
      total += group[-1].size

    outcomes: Sequence[_Result | Exception]
    try:
      outcomes = self._commit([waiting.request for waiting in group])
    except Exception as error:  # whoever waits has to hear of it
      outcomes = [error] * len(group)
    for waiting, outcome in zip(group, outcomes, strict=True):
      waiting.outcome, waiting.is_done = outcome, True
