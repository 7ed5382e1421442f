"""A recommender behind queues: what a server asks, whatever it speaks.

Reads and writes have a thread each. Reads that wait are grouped by what they
ask for, so that users of one group go through the device together; users and
items are padded to a few sizes, all of which `warm_up` compiles.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from dynllm_jax import checks
from dynllm_jax.live.recommender import Observed
from dynllm_jax.live.recommender import Recommendations
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.serving.micro_batches import MicroBatcher
from dynllm_jax.types import InputError

MAX_K = 512  # items of an answer
_KS = (64, MAX_K)  # of the programs; an answer is cut to what was asked for
_USERS = (1, 8, 64)  # sizes to which users are padded
_WAITING = 1024  # requests that wait in a queue
_EVENTS_AT_ONCE = 2048


class Wanted(NamedTuple):
  """Recommendations for a user; fields as arguments of `recommend`."""

  user: str
  k: int = 10
  time: float | None = None
  exact: bool = False
  exclude_seen: bool = False
  candidates: tuple[str, ...] | None = None
  categories: tuple[str, ...] | None = None
  exclude: tuple[str, ...] | None = None
  session: tuple[tuple[str, int], ...] | None = None


class Service:
  """A recommender whose methods are coroutines. Made in an event loop.

  Args:
    recommender: the model.
    waiting: requests that may wait in each queue.
    on_batch: told the number of requests that were answered together.
  """

  def __init__(
    self,
    recommender: Recommender,
    waiting: int = _WAITING,
    on_batch: Callable[[int], object] = lambda count: None,
  ) -> None:
    self.recommender = recommender
    self.reads = MicroBatcher[Wanted, Recommendations](
      self._answer, most=_USERS[-1], waiting=waiting, on_batch=on_batch
    )
    self.others = MicroBatcher[Callable[[], Any], Any](
      _each, most=1, waiting=waiting
    )
    self.writes = MicroBatcher[list[dict[str, Any]], Observed](
      self._observe, most=_EVENTS_AT_ONCE, waiting=waiting
    )

  async def recommend(self, wanted: Wanted) -> Recommendations:
    """The best items of a user.

    Raises:
      InputError: naming what is not allowed.
      Busy: if too many requests wait already.
    """
    return await self.reads.ask(wanted)

  async def recommend_all(
    self, wanted: Sequence[Wanted]
  ) -> list[Recommendations]:
    """The best items of several, all or none of which are answered.

    Raises:
      InputError: naming the first that is not allowed.
      Busy: if too many requests wait already.
    """
    found = await self.reads.ask_all(wanted)
    for number, outcome in enumerate(found):
      if isinstance(outcome, InputError):
        raise InputError(f'requests[{number}]: {outcome}') from outcome
      if isinstance(outcome, BaseException):
        raise outcome
    return [one for one in found if isinstance(one, Recommendations)]

  async def observe(self, events: list[dict[str, Any]]) -> Observed:
    """Takes in events; on return they are in the journal and in the state.

    Raises:
      InputError: naming the first field that is not allowed; nothing changes.
      Busy: if too many requests wait already.
    """
    return await self.writes.ask(events, len(events))

  async def other(self, call: Callable[[], Any]) -> Any:
    """Whatever else is read, one after the other.

    Raises:
      InputError: naming what is not allowed.
      Busy: if too many requests wait already.
    """
    return await self.others.ask(call)

  async def close(self) -> None:
    """Answers what waits."""
    for batcher in (self.reads, self.others, self.writes):
      await batcher.close()

  def warm_up(self) -> None:
    """Compiles what requests run, so that none of them waits for it."""
    recommender = self.recommender
    user = recommender.users[0]
    for k in _KS:
      for users in _USERS:
        for unseen in (False, True):
          self._answer([Wanted(user, k=k, exclude_seen=unseen)] * users)
        if len(recommender.items) <= _KS[0]:
          break
      self._answer([Wanted(user, k=k, exact=True)])

  # ------------------------------------------------------------ in the threads

  def _answer(
    self, wanted: Sequence[Wanted]
  ) -> list[Recommendations | Exception]:
    """Answers requests, those that ask for the same things together."""
    groups: dict[Wanted, list[int]] = {}
    outcomes: list[Recommendations | Exception | None] = [None] * len(wanted)
    for number, one in enumerate(wanted):
      try:
        self._check_k(one.k)
      except InputError as error:
        outcomes[number] = error
        continue
      padded = next(k for k in _KS if one.k <= k)
      groups.setdefault(one._replace(user='', k=padded), []).append(number)

    for asked, numbers in groups.items():
      users = [wanted[number].user for number in numbers]
      found: Sequence[Recommendations | Exception]
      try:
        found = self._together(asked, users)
      except InputError:
        # One of them is at fault, and the others are not.
        found = [self._alone(asked, user) for user in users]
      for number, outcome in zip(numbers, found, strict=True):
        outcomes[number] = _cut(outcome, wanted[number].k)
    return [outcome for outcome in outcomes if outcome is not None]

  def _together(
    self, asked: Wanted, users: Sequence[str]
  ) -> list[Recommendations]:
    """The answers of users who ask for the same things."""
    recommender = self.recommender
    return recommender.recommend(
      users,
      k=min(asked.k, len(recommender.items)),
      time=asked.time,
      exact=asked.exact,
      exclude_seen=asked.exclude_seen,
      candidates=asked.candidates,
      categories=asked.categories,
      exclude=asked.exclude,
    )

  def _alone(self, asked: Wanted, user: str) -> Recommendations | Exception:
    try:
      return self._together(asked, [user])[0]
    except InputError as error:
      return error

  def _check_k(self, k: int) -> None:
    most = min(MAX_K, len(self.recommender.items))
    if not 1 <= k <= most:
      raise checks.not_allowed(
        'k',
        k,
        f'1 to {most}, the number of items, at most {MAX_K}',
      )

  def _observe(
    self, requests: Sequence[list[dict[str, Any]]]
  ) -> list[Observed | Exception]:
    """Takes in the events of each request."""
    outcomes: list[Observed | Exception] = []
    for events in requests:
      try:
        outcomes.append(self.recommender.observe(events))
      except InputError as error:
        outcomes.append(error)
    return outcomes


def _each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
  """What came of each call."""
  outcomes: list[Any] = []
  for call in calls:
    try:
      outcomes.append(call())
    except InputError as error:
      outcomes.append(error)
  return outcomes


def _cut(
  outcome: Recommendations | Exception, k: int
) -> Recommendations | Exception:
  """An answer of at most k items."""
  if isinstance(outcome, Exception):
    return outcome
  return outcome._replace(
    items=outcome.items[:k],
    scores=outcome.scores[:k],
    titles=outcome.titles[:k],
  )
