"""A recommender behind queues: what a server asks, whatever it speaks.

Reads and writes have a thread each. Reads that wait are grouped by what they
ask for, so that users of one group go through the device together. Users are
padded to a few sizes, all of which `warm_up` compiles in a thread of its own:
the first answers need not wait for it.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import pathlib
import threading
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from dynllm_jax import checks
from dynllm_jax.live.answers import Recommendations
from dynllm_jax.live.answers import Similar
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.serving import questions
from dynllm_jax.serving.micro_batches import MicroBatcher
from dynllm_jax.serving.micro_batches import Threads
from dynllm_jax.types import InputError

MAX_K = 512  # items of an answer
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
    warms: whether what requests run is compiled ahead; if not, a request of a
      new kind waits for its program.
  """

  def __init__(
    self,
    recommender: Recommender,
    waiting: int = 1024,
    on_batch: Callable[[int], object] = lambda count: None,
    warms: bool = True,
  ) -> None:
    self.recommender = recommender
    self._warms = warms
    self.reads = MicroBatcher[Wanted, Recommendations](
      self._answer, most=_USERS[-1], waiting=waiting, on_batch=on_batch
    )
    self.others = Threads(1, waiting)
    # As many as share a commit of the journal.
    self.writes = Threads(_WRITERS, waiting)
    self._turn = asyncio.Lock()  # of changeovers
    self._ended = threading.Event()
    self._warm = threading.Event()
    self._warming: asyncio.Future[None] | None = None

  @property
  def is_warm(self) -> bool:
    """Whether all programs are compiled that requests run."""
    return self._warm.is_set()

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

  async def changeover(self, run: str) -> Recommender:
    """Moves to another training run, without a gap.

    Requests are answered meanwhile: by the run so far, until the other one has
    been restored, has compiled what it will be asked, and has the journal.

    Args:
      run: the name of a folder beside the run folder.

    Returns:
      Its recommender.

    Raises:
      InputError: if there is no such run, or it cannot follow this one; nothing
        changes then.
    """
    async with self._turn:
      here = pathlib.Path(self.recommender.workdir).absolute()
      folder = here.parent / run
      if run in ('.', '..') or not folder.is_dir():
        raise InputError(
          f'run: there is no folder {run!r} beside that of {here.name!r}; '
          'allowed: the name of a run folder'
        )

      def prepare(new: Recommender) -> None:
        Service(new, warms=self._warms).warm_up()

      self.recommender = await asyncio.to_thread(
        self.recommender.changeover, str(folder), prepare
      )
      return self.recommender

  async def close(self) -> None:
    """Answers what waits."""
    self._ended.set()
    if self._warming is not None:
      await asyncio.wait([self._warming])
    for queue in (self.reads, self.others, self.writes):
      await queue.close()

  def answer_once(self) -> None:
    """Compiles what the first answer runs.

    Raises:
      InputError: if the model cannot answer.
    """
    self._try([Wanted(self.recommender.users[0], 1)])

  def start_warming(self, on_failure: Callable[[Exception], object]) -> None:
    """Compiles all else that requests run, in a thread.

    Args:
      on_failure: called in that thread, where something cannot be answered.
    """

    def warm() -> None:
      try:
        self.warm_up()
      except Exception as error:
        on_failure(error)

    loop = asyncio.get_running_loop()
    self._warming = loop.run_in_executor(None, warm)

  def warm_up(self) -> None:
    """Compiles what requests run, so that none of them waits for it.

    What is asked for most comes first. It ends early where the service does.

    Raises:
      InputError: if the model cannot answer.
    """
    self.answer_once()
    for _ in self._warm_up() if self._warms else ():
      if self._ended.is_set():
        return
    self._warm.set()

  # ------------------------------------------------------------ in the threads

  def _warm_up(self) -> Iterator[None]:
    """A program or a few at each step."""
    recommender = self.recommender
    user, item = recommender.users[0], recommender.items[0]
    most = min(MAX_K, self._num_items())
    for _ in recommender.warm_up(1):
      yield
    for users in _USERS:
      for k in sorted({1, most}):
        self._try([Wanted(user, k)] * users)
        yield
    for _ in recommender.warm_up():
      yield
    if recommender.has_vectors:
      for k in sorted({1, most}):
        recommender.similar_items(item, k)
        yield
    recommender.explain(user, item)
    yield
    for users in _USERS:
      self._try([Wanted(user, exact=True)] * users)
      yield

  def _try(self, wanted: Sequence[Wanted]) -> None:
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
    return self.recommender.recommend_guest(
      wanted.session,
      wanted.k,
      exclude_seen=wanted.exclude_seen,
      candidates=wanted.candidates,
      categories=wanted.categories,
      exclude=wanted.exclude,
    )

  def _similar(self, item: str, k: int) -> Similar:
    self._check_k(k)
    return self.recommender.similar_items(item, k)

  def _num_items(self) -> int:
    return self.recommender.num_items

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
      asked = one._replace(user='', k=0)
      groups.setdefault(asked, []).append(number)

    for asked, numbers in groups.items():
      users = [wanted[number].user for number in numbers]
      asked = asked._replace(k=max(wanted[number].k for number in numbers))
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
