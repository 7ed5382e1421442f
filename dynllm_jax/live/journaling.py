"""How a recommender and its journal go together (SPEC 10.5).

Whoever writes journals a batch first, applies it, and only then acknowledges
it. Whoever follows applies what it finds in the journal. Either way a state and
the tip that it stands at change together.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import threading
from typing import NamedTuple
from typing import Protocol

from dynllm_jax.live import batches
from dynllm_jax.live.batches import Batch
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.group_commit import GroupCommit
from dynllm_jax.live.journal import event_digest
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journal import JournalError
from dynllm_jax.live.journal import JournalWriter
from dynllm_jax.live.journal import Tip
from dynllm_jax.types import InputError

_MOST_EVENTS = 2048  # of requests that share a commit
_SECONDS_OF_RETRY = 5.0  # a follower waits after an error


class OtherEventError(InputError):
  """An id that a client gave an event is that of another one."""


class State(Protocol):
  """What batches are applied to."""

  def apply_together(
    self,
    parts: Sequence[Batch],
    position: int | None = None,
    *,
    ranked: bool = False,
  ) -> list[Observed]:
    """Applies batches as one; the state stands at `position` then."""


class Request(NamedTuple):
  """One call of `observe`.

  Attributes:
    batch: checked.
    ids: of its events, '' for one without; empty where none has any.
    ranked: whether its events are ranked.
  """

  batch: Batch
  ids: tuple[str, ...] = ()
  ranked: bool = False


class Journaling:
  """Batches on their way into a journal and into a state.

  Args:
    journal: appended to by this process.
    state: where the batches are applied.
    tip: at which the state stands.
  """

  def __init__(self, journal: JournalWriter, state: State, tip: Tip) -> None:
    self.journal = journal
    self._state = state
    self._tip = tip
    self._commits = GroupCommit[Request, Observed](self._commit, _MOST_EVENTS)

  def observe(self, request: Request) -> Observed:
    """Journals and applies a request; it is on the disk on return.

    Raises:
      InputError: if an id names another event, or the journal cannot be
        written; nothing is changed then.
    """
    return self._commits.do(request, len(request.batch.users))

  @contextlib.contextmanager
  def changing_over(self, state: State) -> Iterator[Tip]:
    """Applies batches to another state from now on.

    Nothing is journaled meanwhile; who wants to waits, and goes to the other
    state then.

    Args:
      state: which stands at the journal's end when the context ends.

    Yields:
      The journal's end.
    """
    with self._commits.paused():
      self.catch_up()
      yield self._tip
      self._state = state

  def catch_up(self) -> None:
    """Applies what the journal has beyond the state.

    Raises:
      JournalError: if the journal cannot be read.
    """
    for tip, batch in entries(self.journal, self._tip):
      self._state.apply_together([batch], tip.position)
      self._tip = tip

  def _commit(self, requests: Sequence[Request]) -> list[Observed | Exception]:
    """Journals requests as one batch, and applies it."""
    # A commit may have been made though its answer was lost.
    if self.journal.tip() != self._tip:
      self.catch_up()
    asked = [name for request in requests for name in request.ids if name]
    digests = self.journal.event_digests(asked) if asked else {}

    parts: list[Batch] = []
    news: dict[str, bytes] = {}
    outcomes: list[Observed | Exception | None] = []
    repeats: list[int] = []
    for request in requests:
      try:
        part, new = _without_repeats(request, digests | news)
      except InputError as error:
        outcomes.append(error)
        continue
      news |= new
      parts.append(part)
      repeats.append(len(request.batch.users) - len(part.users))
      outcomes.append(None)

    observed = self._append(
      parts, news, any(request.ranked for request in requests)
    )
    done = iter(zip(observed, repeats, strict=True))
    return [
      _with_repeats(*next(done)) if outcome is None else outcome
      for outcome in outcomes
    ]

  def _append(
    self, parts: list[Batch], ids: dict[str, bytes], ranked: bool
  ) -> list[Observed]:
    """Journals parts as one batch and applies it, unless it is empty."""
    joined = batches.joined(parts)
    if not joined.users and not joined.texts:
      return [Observed(position=self._tip.position) for _ in parts]
    tip = self.journal.append(batches.to_json(joined), self._tip, ids)
    observed = self._state.apply_together(parts, tip.position, ranked=ranked)
    self._tip = tip
    return observed


class Following:
  """A thread that applies what another process journals.

  Args:
    journal: that is read.
    state: where its batches are applied.
    tip: at which the state stands.
    seconds: between two looks at the journal.
    report: receives a line where the journal cannot be read.
  """

  def __init__(
    self,
    journal: Journal,
    state: State,
    tip: Tip,
    seconds: float,
    report: Callable[[str], None],
  ) -> None:
    self.journal = journal
    self._state = state
    self._tip = tip
    self._seconds = seconds
    self._report = report
    self._turn = threading.Lock()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._follow, daemon=True)
    self._thread.start()

  def catch_up(self) -> None:
    """Applies all that is in the journal now.

    Raises:
      JournalError: if the journal cannot be read.
    """
    with self._turn:
      for tip, batch in entries(self.journal, self._tip):
        if self._ended.is_set():
          return
        self._state.apply_together([batch], tip.position)
        self._tip = tip

  def close(self) -> None:
    """Ends the thread."""
    self._ended.set()
    self._thread.join()

  def _follow(self) -> None:
    """Looks at the journal until it is closed or the state has failed."""
    seconds, said = self._seconds, ''
    while not self._ended.wait(seconds):
      try:
        self.catch_up()
        seconds, said = self._seconds, ''
      except JournalError as error:
        # It may come back: a server that starts anew, a disk that is mounted.
        if str(error) != said:
          self._report(f'following is interrupted: {error}')
        seconds, said = _SECONDS_OF_RETRY, str(error)
      except Exception as error:
        # The state says so itself, at every question.
        self._report(f'following has ended: {type(error).__name__}: {error}')
        return


def entries(journal: Journal, after: Tip) -> Iterator[tuple[Tip, Batch]]:
  """The batches of a journal after a tip, each with its own.

  Raises:
    JournalError: if it cannot be read, or a batch is none.
  """
  for tip, payload in journal.read(after):
    try:
      yield tip, batches.from_json(payload)
    except ValueError as error:
      raise JournalError(
        f'{journal.place}: batch {tip.position} cannot be read ({error}); '
        'allowed: a journal of this version of dynllm_jax'
      ) from error


def _without_repeats(
  request: Request, known: dict[str, bytes]
) -> tuple[Batch, dict[str, bytes]]:
  """A request's batch without events that were acknowledged, and new ids.

  Raises:
    OtherEventError: if an id is that of another event.
  """
  batch, ids = request.batch, request.ids
  if not ids:
    return batch, {}

  new: dict[str, bytes] = {}
  kept = []
  rows = zip(batch.users, batch.items, batch.times, strict=True)
  for number, (name, row) in enumerate(zip(ids, rows, strict=True)):
    digest = event_digest(*row)
    before = known.get(name, new.get(name)) if name else None
    if before is None:
      kept.append(number)
      if name:
        new[name] = digest
    elif before != digest:
      raise OtherEventError(
        f'ids[{number}]: {name!r} is the id of another event; allowed: an id '
        'for each event, and the same one where it is sent again'
      )
  if len(kept) == len(ids):
    return batch, new
  return Batch(
    users=tuple(batch.users[number] for number in kept),
    items=tuple(batch.items[number] for number in kept),
    times=tuple(batch.times[number] for number in kept),
    texts=batch.texts,
  ), new


def _with_repeats(observed: Observed, repeats: int) -> Observed:
  return observed._replace(repeats=repeats)
