"""A recommender behind queues: what a server asks, whatever it speaks.

Reads and writes have a thread each. Reads that wait are grouped by what they
ask for, so that users of one group go through the device together; users and
items are padded to a few sizes, all of which `warm_up` compiles.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from dynllm_jax import checks
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.recommender import Recommendations
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.live.recommender import Similar
from dynllm_jax.serving import questions
from dynllm_jax.serving.micro_batches import MicroBatcher
from dynllm_jax.serving.micro_batches import Threads
from dynllm_jax.types import InputError

MAX_K = 512  # items of an answer
_KS = (64, MAX_K)  # of the programs; an answer is cut to what was asked for
_USERS = (1, 8, 64)  # sizes to which users are padded
_WRITERS = 32
_Answer = TypeVar('_Answer')


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
    waiting: int = 1024,
    on_batch: Callable[[int], object] = lambda count: None,
  ) -> None:
    self.recommender = recommender
    self.reads = MicroBatcher[Wanted, Recommendations](
      self._answer, most=_USERS[-1], waiting=waiting, on_batch=on_batch
    )
    self.others = Threads(1, waiting)
    # As many as share a commit of the journal.
    self.writes = Threads(_WRITERS, waiting)

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
    """The best items of several users and guests, of all of them or of none.

    Raises:
      InputError: naming the first that is not allowed.
      Busy: if too many requests wait already.
    """
    users = [one for one in wanted if one.session is None]
    guests = [one for one in wanted if one.session is not None]
    of_users = asyncio.ensure_future(self.reads.ask_all(users))
    of_guests = asyncio.gather(
      *(self.other(functools.partial(self._guest, one)) for one in guests),
      return_exceptions=True,
    )
    found: dict[bool, Iterator[Recommendations | BaseException]] = {
      True: iter(await of_guests),
      False: iter(await of_users),
    }
    answers = []
    for number, one in enumerate(wanted):
      outcome = next(found[one.session is not None])
      if isinstance(outcome, InputError):
        raise InputError(f'requests[{number}]: {outcome}') from outcome
      if isinstance(outcome, BaseException):
        raise outcome
      answers.append(outcome)
    return answers

  async def similar(self, item: str, k: int) -> Similar:
    """The items like an item.

    Raises:
      InputError: naming what is not allowed.
      Busy: if too many requests wait already.
    """
    return await self.other(lambda: self._similar(item, k))

  async def observe(self, events: list[dict[str, Any]]) -> Observed:
    """Takes in events; on return they are in the journal and in the state.

    Raises:
      InputError: naming the first field that is not allowed; nothing changes.
      Busy: if too many requests wait already.
    """
    return await self.writes.do(
      lambda: questions.observe(self.recommender, events)
    )

  async def add_items(self, items: list[dict[str, Any]]) -> Observed:
    """Adds items, or changes their texts; as `observe`.

    Raises:
      InputError, Busy: as `observe`.
    """
    return await self.writes.do(lambda: self.recommender.add_items(items))

  async def other(self, call: Callable[[], _Answer]) -> _Answer:
    """Whatever else is read, one after the other.

    Raises:
      InputError: naming what is not allowed.
      Busy: if too many requests wait already.
    """
    return await self.others.do(call)

  async def close(self) -> None:
    """Answers what waits."""
    for queue in (self.reads, self.others, self.writes):
      await queue.close()

  def warm_up(self) -> None:
    """Compiles what requests run, so that none of them waits for it.

    Raises:
      InputError: if the model cannot answer.
    """
    recommender = self.recommender
    user, item = recommender.users[0], recommender.items[0]
    count = len(recommender.items)
    for k in sorted({min(k, count) for k in _KS}):
      for users in _USERS:
        for unseen in (False, True):
          self._warm([Wanted(user, k, exclude_seen=unseen)] * users)
      self._warm([Wanted(user, k, exact=True)])
      self._similar(item, k)
    recommender.warm_up()
    recommender.explain(user, item)

  # ------------------------------------------------------------ in the threads

  def _warm(self, wanted: Sequence[Wanted]) -> None:
    for outcome in self._answer(wanted):
      if isinstance(outcome, Exception):
        raise outcome

  def _guest(self, wanted: Wanted) -> Recommendations:
    """The best items of somebody who is not recorded."""
    self._check_k(wanted.k)
    if wanted.time is not None or wanted.exact:
      raise InputError(
        'time, exact: they are not for a guest; allowed: a session, after '
        'which the guest is answered'
      )
    assert wanted.session is not None
    return _cut(
      self.recommender.recommend_guest(
        wanted.session,
        self._padded(wanted.k),
        exclude_seen=wanted.exclude_seen,
        candidates=wanted.candidates,
        categories=wanted.categories,
        exclude=wanted.exclude,
      ),
      wanted.k,
    )

  def _similar(self, item: str, k: int) -> Similar:
    self._check_k(k)
    found = self.recommender.similar_items(item, self._padded(k))
    return found._replace(
      items=found.items[:k],
      cosines=found.cosines[:k],
      titles=found.titles[:k],
    )

  def _padded(self, k: int) -> int:
    """The number of items, of few, that a program finds."""
    return min(next(most for most in _KS if k <= most), self._num_items())

  def _num_items(self) -> int:
    return len(self.recommender.items)

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
      asked = one._replace(user='', k=self._padded(one.k))
      groups.setdefault(asked, []).append(number)

    for asked, numbers in groups.items():
      users = [wanted[number].user for number in numbers]
      found: Sequence[Recommendations | Exception]
      try:
        found = self._together(asked, users)
      except InputError:
        # One of them is at fault, and the others are not.
        found = [self._alone(asked, user) for user in users]
      for number, outcome in zip(numbers, found, strict=True):
        if isinstance(outcome, Recommendations):
          outcome = _cut(outcome, wanted[number].k)
        outcomes[number] = outcome
    return [outcome for outcome in outcomes if outcome is not None]

  def _together(
    self, asked: Wanted, users: Sequence[str]
  ) -> list[Recommendations]:
    """The answers of users who ask for the same things."""
    return self.recommender.recommend(
      users,
      k=asked.k,
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
    most = min(MAX_K, self._num_items())
    if not 1 <= k <= most:
      raise checks.not_allowed(
        'k',
        k,
        f'1 to {most}, the number of items, at most {MAX_K}',
      )


def _cut(found: Recommendations, k: int) -> Recommendations:
  """An answer of at most k items."""
  return found._replace(
    items=found.items[:k], scores=found.scores[:k], titles=found.titles[:k]
  )
