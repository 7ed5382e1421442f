"""What a recommender keeps on disk: its journal, and snapshots of its state.

A restart reads the newest snapshot that is whole, or the run's checkpoint where
there is none, and applies what the journal has after it. A journal is opened to
write by the first event, so that whoever only asks is in nobody's way.
"""

from collections.abc import Iterator
import threading
from typing import Protocol

import numpy as np

from dynllm_jax.live import going_on
from dynllm_jax.live import journal as journal_lib
from dynllm_jax.live import snapshots
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journal import JournalWriter
from dynllm_jax.live.journal import Tip
from dynllm_jax.live.journaling import entries
from dynllm_jax.live.journaling import Following
from dynllm_jax.live.journaling import Journaling
from dynllm_jax.live.journaling import Request
from dynllm_jax.live.journaling import State
from dynllm_jax.live.live_state import Saved
from dynllm_jax.live.restore import Opened
from dynllm_jax.live.snapshots import Snapshot
from dynllm_jax.progress import say
from dynllm_jax.types import InputError

_SNAPSHOT_EVENTS = 100_000  # after which a snapshot is written by itself
_FOLLOW_SECONDS = 0.05  # between two looks at a journal


class Keeper(State, Protocol):
  """What is kept: a recommender."""

  @property
  def position(self) -> int:
    """At which position of the journal the state stands."""

  def start_at(self, position: int) -> None:
    """Says at which position of the journal the state stands."""

  def saved(self) -> Saved:
    """A copy of all that batches have changed; `position` in its record."""


class Kept:
  """The journal and the snapshots of one recommender, which `begin` names.

  Attributes:
    place: of the journal.

  Args:
    run: of the recommender.
    place: of the journal, '' for the run's own.

  Raises:
    InputError: if the run folder is in a bucket and `place` names no journal.
  """

  _recommender: Keeper

  def __init__(self, run: Opened, place: str) -> None:
    own = going_on.journal_place(run.workdir)
    self.place = place or own
    # Names the journal where it is not the run's own.
    name = journal_lib.full_name(self.place)
    self._elsewhere = '' if name == journal_lib.full_name(own) else name
    self._folder = going_on.live_folder(run.workdir)
    self._origin = going_on.origin(run.workdir)
    self._name = going_on.journal_name(run.prepared.identity)
    self._about = {
      'workdir': run.workdir,
      'system': run.prepared.name,
      'log': run.prepared.log.fingerprint,
    }
    # Of the parameters, without which a stored state is another run's.
    self._run = f'{self._name}-{run.stored}'
    self._tip: Tip | None = None  # that of the state, once there is a journal
    self._snapshot_at: int | None = None  # the newest one's position
    self._journaling: Journaling | None = None
    self._following: Following | None = None
    self._successor: Kept | None = None  # after a changeover
    self._turn = threading.Lock()
    self._since_snapshot = 0
    self._snapshots = threading.Lock()

  # ------------------------------------------------------------------ restoring

  def stored(self) -> Iterator[tuple[Tip, Saved]]:
    """States that a restart may begin with, the newest first.

    Yields:
      The journal's tip that the state holds, and the state.

    Raises:
      InputError: if the journal cannot be read, is that of another run, or
        ends before the state that a snapshot holds.
    """
    if not journal_lib.exists(self.place):
      return
    with Journal(self.place) as journal:
      self._first_tip(journal)
      for snapshot in snapshots.stored(
        self._folder, self._run, say, self._elsewhere
      ):
        journal.check_holds(snapshot.tip)
        yield snapshot.tip, Saved(snapshot.record, snapshot.arrays)

  def begin(self, recommender: Keeper, tip: Tip | None = None) -> None:
    """Takes a recommender, and brings it to the journal's end.

    Args:
      recommender: which stands where its run's log ends, or at a tip.
      tip: of `stored`.

    Raises:
      InputError: if the journal cannot be read, or is that of another run.
    """
    self._recommender = recommender
    self._snapshot_at = None if tip is None else tip.position
    if not journal_lib.exists(self.place):
      if self._origin is not None:
        raise InputError(
          f'{self.place}: the journal that the run went on from is not there; '
          'allowed: its place, as the journal'
        )
      return

    with Journal(self.place) as journal:
      tip = tip or self._first_tip(journal)
      recommender.start_at(tip.position)
      self._tip = self._apply(journal, tip)

  def _first_tip(self, journal: Journal) -> Tip:
    """The tip at which the run's log ends."""
    if self._origin is not None:
      journal.check_holds(self._origin)
      return self._origin
    if journal.tip() != journal.start:
      journal.covers(self._name)
    return journal.start

  def _apply(self, journal: Journal, tip: Tip) -> Tip:
    """Applies what a journal has after a tip; the tip after that."""
    last = tip
    for last, batch in entries(journal, tip):
      self._recommender.apply_together([batch], last.position)
    if count := last.position - tip.position:
      say(f'replayed {count:,} batches of {journal.place}')
    return last

  # -------------------------------------------------------------------- writing

  def start_writing(self) -> Journaling:
    """Opens the journal to write, once.

    Raises:
      InputError: if this one follows, another process writes, or the journal
        cannot be written.
    """
    with self._turn:
      if self._following is not None:
        raise InputError(
          f'{self.place}: this recommender follows the journal; allowed: to '
          'observe where it is written'
        )
      if self._journaling is None:
        journal = JournalWriter(self.place)
        try:
          journal.serve(self._name, self._about, self._origin)
          if self._tip is None:
            self._tip = self._first_tip(journal)
          journaling = Journaling(journal, self._recommender, self._tip)
          journaling.catch_up()
        except BaseException:
          journal.close()
          raise
        self._journaling = journaling
      return self._journaling

  def observe(self, request: Request) -> Observed:
    """Journals and applies a request.

    Raises:
      InputError: as `start_writing`, or what is wrong with the request.
    """
    if self._successor is not None:
      return self._successor.observe(request)
    journaling = self._journaling or self.start_writing()
    observed = journaling.observe(request)
    self._since_snapshot += observed.events
    if self._since_snapshot >= _SNAPSHOT_EVENTS:
      self._since_snapshot = 0
      threading.Thread(target=self._snapshot_by_itself, daemon=True).start()
    return observed

  def hand_over(self, successor: 'Kept') -> None:
    """Leaves the journal to the recommender of another run, without a gap.

    Args:
      successor: of the other run, which has applied most of the journal.

    Raises:
      InputError: if the journal cannot be read or written.
    """
    if self._following is not None:
      successor.follow()
      self.close()
      return

    journaling = self.start_writing()
    journal = journaling.journal
    with journaling.changing_over(successor._recommender):
      tip = successor._tip or successor._first_tip(journal)
      successor._tip = successor._apply(journal, tip)
      journal.serve(successor._name, successor._about, successor._origin)
    with self._turn:
      successor._journaling, self._journaling = journaling, None
      self._successor = successor

  # ------------------------------------------------------------------ following

  def follow(self) -> None:
    """Applies what is journaled from now on, as it comes.

    Raises:
      InputError: if there is no journal.
    """
    journal = Journal(self.place)
    tip = self._tip or self._first_tip(journal)
    self._following = Following(
      journal, self._recommender, tip, _FOLLOW_SECONDS, say
    )

  def catch_up(self) -> None:
    """Applies all that is in the journal now.

    Raises:
      InputError: if the journal cannot be read.
    """
    if self._following is not None:
      self._following.catch_up()

  def journaled(self) -> set[tuple[str, str, int]]:
    """User, item and time of all events of the journal."""
    if not journal_lib.exists(self.place):
      return set()
    with Journal(self.place) as journal:
      return {
        event
        for _, batch in entries(journal, journal.start)
        for event in zip(batch.users, batch.items, batch.times, strict=True)
      }

  # ------------------------------------------------------------------ snapshots

  def snapshot(self) -> str:
    """Writes a snapshot; its file, '' where there is no journal yet.

    Raises:
      InputError: if it cannot be written.
    """
    if not journal_lib.exists(self.place):
      return ''
    with self._snapshots, Journal(self.place) as journal:
      record, arrays = self._recommender.saved()
      tip = journal.tip_at(record['position'])
      on_host = {name: np.asarray(array) for name, array in arrays.items()}
      path = snapshots.save(
        self._folder,
        Snapshot(self._run, tip, record, on_host),
        self._elsewhere,
      )
      self._snapshot_at = tip.position
    return str(path)

  def needs_snapshot(self) -> bool:
    """Whether a restart would have anything to compute."""
    return self._recommender.position != self._snapshot_at

  def _snapshot_by_itself(self) -> None:
    """A snapshot in the background, which may fail without harm."""
    try:
      self.snapshot()
    except InputError as error:
      say(f'no snapshot: {error}')

  def close(self) -> None:
    """Closes the journal."""
    with self._turn:
      if self._following is not None:
        self._following.close()
        self._following.journal.close()
      if self._journaling is not None:
        self._journaling.journal.close()
        self._journaling = None
