"""Requests of many clients, answered together.

A program on the device takes little longer for sixty-four users than for one,
and a commit as long for a hundred events as for one. So whatever comes in while
an answer is being computed is answered by the next one: a client alone waits
for nobody, and many share the work. The queue has an end: a request beyond it
is refused at once, which is better for everybody than an answer too late.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from typing import Generic
from typing import TypeVar

_Request = TypeVar('_Request')
_Answer = TypeVar('_Answer')


class Busy(Exception):
  """Too many requests wait already."""


@dataclasses.dataclass(eq=False)
class _Waiting(Generic[_Request, _Answer]):
  """A request, its size, and where its answer goes."""

  request: _Request
  size: int
  future: 'asyncio.Future[_Answer]'


class MicroBatcher(Generic[_Request, _Answer]):
  """Answers requests in a thread of its own, as many at once as there are.

  Its methods are called in one event loop.

  Args:
    answer: `(requests) -> outcomes`, one for each: an answer, or an exception
      for that request alone. What it raises is raised to all of them.
    most: sizes of requests that are answered together add up to this at most;
      a larger one is answered alone.
    waiting: requests that may wait.
    on_batch: told the number of requests of each batch.
  """

  def __init__(
    self,
    answer: Callable[[Sequence[_Request]], Sequence[_Answer | Exception]],
    *,
    most: int,
    waiting: int,
    on_batch: Callable[[int], object] = lambda count: None,
  ) -> None:
    self._answer = answer
    self._most, self._limit = most, waiting
    self._on_batch = on_batch
    self._queue: deque[_Waiting[_Request, _Answer]] = deque()
    self._thread = ThreadPoolExecutor(max_workers=1)
    self._worker: asyncio.Task[None] | None = None

  def __len__(self) -> int:
    """How many requests wait."""
    return len(self._queue)

  async def ask(self, request: _Request, size: int = 1) -> _Answer:
    """The answer to a request.

    Args:
      request: for `answer`.
      size: such as its number of events.

    Raises:
      Busy: if too many wait already.
      Exception: what `answer` raised or returned for it.
    """
    (found,) = await self.ask_all([request], [size])
    if isinstance(found, BaseException):
      raise found
    return found

  async def ask_all(
    self, requests: Sequence[_Request], sizes: Sequence[int] | None = None
  ) -> list[_Answer | BaseException]:
    """What came of each of several requests, answers or exceptions.

    Raises:
      Busy: if there is no room for all of them; none is answered then.
    """
    if len(self._queue) + len(requests) > max(self._limit, len(requests)):
      raise Busy
    loop = asyncio.get_running_loop()
    mine = [
      _Waiting[_Request, _Answer](request, size, loop.create_future())
      for request, size in zip(requests, sizes or [1] * len(requests))
    ]
    self._queue.extend(mine)
    if self._worker is None or self._worker.done():
      self._worker = loop.create_task(self._work())
    return await asyncio.gather(
      *(waiting.future for waiting in mine), return_exceptions=True
    )

  async def close(self) -> None:
    """Answers what waits, and ends the thread."""
    if self._worker is not None:
      await self._worker
    self._thread.shutdown()

  async def _work(self) -> None:
    """Answers until nothing waits."""
    loop = asyncio.get_running_loop()
    while self._queue:
      batch = self._next_batch()
      if not batch:
        continue
      self._on_batch(len(batch))
      outcomes: Sequence[_Answer | Exception]
      try:
        outcomes = await loop.run_in_executor(
          self._thread, self._answer, [waiting.request for waiting in batch]
        )
      except Exception as error:  # whoever waits has to hear of it
        outcomes = [error] * len(batch)

      for waiting, outcome in zip(batch, outcomes, strict=True):
        if waiting.future.done():  # its client has gone
          continue
        if isinstance(outcome, Exception):
          waiting.future.set_exception(outcome)
        else:
          waiting.future.set_result(outcome)

  def _next_batch(self) -> list[_Waiting[_Request, _Answer]]:
    """What waits at the front and goes together; nobody's is left out."""
    batch: list[_Waiting[_Request, _Answer]] = []
    total = 0
    while self._queue:
      size = self._queue[0].size
      if batch and total + size > self._most:
        break
      waiting = self._queue.popleft()
      if not waiting.future.done():
        batch.append(waiting)
        total += size
    return batch


class Threads:
  """Calls in a few threads, of which only so many may wait.

  Args:
    threads: how many calls run at once.
    waiting: calls that run or wait.
  """

  def __init__(self, threads: int, waiting: int) -> None:
    self._threads = ThreadPoolExecutor(max_workers=threads)
    self._limit, self._count = waiting, 0

  def __len__(self) -> int:
    """How many calls run or wait."""
    return self._count

  async def do(self, call: Callable[[], _Answer]) -> _Answer:
    """What a call returns.

    Raises:
      Busy: if too many wait already.
      Exception: what the call raised.
    """
    if self._count >= self._limit:
      raise Busy
    self._count += 1
    future = self._threads.submit(call)
    loop = asyncio.get_running_loop()
    # Counted until it is done, also where its client has gone meanwhile.
    future.add_done_callback(
      lambda _: loop.call_soon_threadsafe(self._done_with_one)
    )
    return await asyncio.wrap_future(future)

  async def close(self) -> None:
    """Finishes all calls, and ends the threads."""
    await asyncio.to_thread(self._threads.shutdown)

  def _done_with_one(self) -> None:
    self._count -= 1
