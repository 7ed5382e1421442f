"""A trained model that recommends, and takes in what users do (SPEC 10).

    import dynllm_jax

    shop = dynllm_jax.Recommender.restore('runs/shop')
    shop.observe({'user': 'u17', 'item': 'b3', 'time': 1_700_000_000})
    print(shop.recommend('u17', k=10).titles)

Ids are those of the log. Users and items that the log does not have may come at
any time. Reading is safe from many threads beside one that writes.
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets import loading
from dynllm_jax.facets import facet_bank
from dynllm_jax.live import answering
from dynllm_jax.live import batches
from dynllm_jax.live import live_state
from dynllm_jax.live import restore as restore_lib
from dynllm_jax.live.batches import Batch
from dynllm_jax.live.batches import ItemText
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.journal import Tip
from dynllm_jax.live.journaling import Request
from dynllm_jax.live.keeping import Kept
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.live.live_state import Saved
from dynllm_jax.progress import say
from dynllm_jax.types import InputError
from dynllm_jax.types import SECONDS_PER_DAY


class Recommender(answering.Answering):
  """A trained model with the state of its users and items.

  Made by `restore`.

  Args:
    run: of which.
    state: on the device.
    max_future_days: how far ahead of this machine's clock an event's time may
      be.
  """

  def __init__(
    self,
    run: restore_lib.Opened,
    state: LiveState,
    max_future_days: float = 1.0,
  ) -> None:
    super().__init__(run, state, max_future_days)
    self._kept: Kept | None = None  # where there is a journal
    self._data_dir: str | None = None
    self._successor: Recommender | None = None  # after a changeover

  @classmethod
  def restore(
    cls,
    workdir: str,
    *,
    journal: str | None = '',
    follow: bool = False,
    until: str = 'log',
    data_dir: str | None = None,
    max_future_days: float = 1.0,
  ) -> 'Recommender':
    """Restores the best epoch of a run, and all that came after its training.

    That is the rest of its log, and what its journal has, from the newest
    snapshot on.

    Args:
      workdir: the folder of a run with `--mode=train`.
      journal: a file, or `postgresql+psycopg://...`; '' for SQLite in the run
        folder. It is made by the first event. None: events are kept in memory
        alone, and gone when the process ends.
      follow: apply what another process journals, as it comes; then nothing
        can be observed here.
      until: 'train' or 'validation' to know the events of those splits alone,
        as an evaluation does before the rest is observed. A facet serves once
        all purchases that it has read have been observed.
      data_dir: where prepared data are now, if not where they were.
      max_future_days: how far ahead of this machine's clock an event's time
        may be.

    Raises:
      InputError: for whatever is wrong with the folder, or gone.
    """
    if until not in restore_lib.SPLITS:
      raise checks.not_allowed('until', until, ', '.join(restore_lib.SPLITS))
    run = restore_lib.open_run(workdir, data_dir)
    if journal is None or until != 'log':
      state = restore_lib.from_checkpoint(run, until)
      return cls(run, state, max_future_days)

    kept = Kept(run, journal)
    recommender, tip = cls._newest(run, kept, max_future_days)
    recommender._kept, recommender._data_dir = kept, data_dir
    kept.begin(recommender, tip)
    if follow:
      kept.follow()
    return recommender

  @classmethod
  def _newest(
    cls, run: restore_lib.Opened, kept: Kept, max_future_days: float
  ) -> tuple['Recommender', Tip | None]:
    """The recommender of the newest snapshot, with its place in the journal.

    Where there is none, it stands where the log ends.
    """
    for tip, saved in kept.stored():
      arrays = dict(saved.arrays)
      try:
        named = json.loads(bytes(np.asarray(arrays.pop('named'))))
        state = restore_lib.from_snapshot(run, Saved(saved.record, arrays))
        recommender = cls(run, state, max_future_days)
        recommender._catalogue.load(named)
      except KeyError as error:
        say(f'a snapshot lacks {error}; an older state takes its place')
        continue
      return recommender, tip
    state = restore_lib.from_checkpoint(run)
    return cls(run, state, max_future_days), None

  # -------------------------------------------------------------------- writing

  def observe(
    self,
    events: Any,
    *,
    ids: Sequence[str] | None = None,
    ranked: bool = False,
  ) -> Observed:
    """Takes in events, all of them or none.

    On return they are in the journal, on the disk.

    Args:
      events: one event, a mapping with `user`, `item`, `time` (unix seconds or
        a datetime) and, if wanted, `title`, `category`, `brand`; or a tuple in
        that order; a list of those; or a table with such columns, of pandas,
        polars or Arrow.
      ids: one for each event, by which it is known if it is sent again: an
        event that was taken in before is counted in `repeats`, and changes
        nothing. '' for an event without one.
      ranked: whether to rank each event's item first, as the evaluation does.

    Raises:
      InputError: naming the first row and field that is not allowed, or what is
        wrong with the journal; nothing is changed.
    """
    batch = self.batch_of(events)
    names = batches.event_ids(ids, len(batch.users))
    return self._take(Request(batch, names, ranked))

  def add_items(self, items: Any) -> Observed:
    """Adds items to the catalogue, or changes texts of those that are there.

    Args:
      items: as `events` of `observe`, with `item` and, if wanted, `title`,
        `category` and `brand`.

    Raises:
      InputError: as `observe`.
    """
    return self._take(Request(self.batch_of_items(items)))

  def batch_of(self, events: Any) -> Batch:
    """Checks events and embeds new texts; changes nothing.

    Args:
      events: as those of `observe`.

    Raises:
      InputError: as `observe`.
    """
    rows = batches.event_rows(events, self._latest_time())
    batch = Batch(
      users=tuple(row.user for row in rows),
      items=tuple(row.item for row in rows),
      times=tuple(row.time for row in rows),
      texts=self._new_texts(rows),
    )
    self.check(batch)
    return batch

  def batch_of_items(self, items: Any) -> Batch:
    """Checks items and embeds new texts; changes nothing.

    Args:
      items: as those of `add_items`.

    Raises:
      InputError: as `observe`.
    """
    rows = batches.item_rows(items)
    texts = self._new_texts(rows)
    named = {text.item for text in texts}
    nameless = dict.fromkeys(
      row.item
      for row in rows
      if row.item not in named and not self.has_item(row.item)
    )
    batch = Batch(texts=(*texts, *map(ItemText, nameless)))
    self.check(batch)
    return batch

  def check(self, batch: Batch) -> None:
    """Stops where the system could not apply a batch.

    Raises:
      InputError: naming what is not allowed.
    """
    self._check_sound()
    if self._state.system.feed != 'shuffled':
      return
    for field, names, known in (
      ('user', batch.users, self._catalogue.user_rows),
      ('item', batch.items, self._catalogue.item_rows),
      ('item', [text.item for text in batch.texts], self._catalogue.item_rows),
    ):
      for number, name in enumerate(names):
        if name not in known:
          raise InputError(
            f'events[{number}].{field}: {name!r} is not known to the run, and '
            f'{self.name} learns its users and items in training alone; '
            f'allowed: those of the run, or a system with a memory'
          )

  def apply(self, batch: Batch, *, ranked: bool = False) -> Observed:
    """Applies a batch that has been checked, and journals nothing.

    The state afterwards depends on the run and on the batches alone, bit for
    bit (SPEC 10.2).

    Args:
      batch: of `batch_of` or `batch_of_items`, or of a journal.
      ranked: whether to rank each event's item first.
    """
    return self.apply_together([batch], ranked=ranked)[0]

  def apply_together(
    self,
    parts: Sequence[Batch],
    position: int | None = None,
    *,
    ranked: bool = False,
  ) -> list[Observed]:
    """Applies batches as the one batch that they make together.

    Args:
      parts: as those of `apply`.
      position: of that batch; None: the next one.
      ranked: as that of `apply`.

    Returns:
      What became of each part.
    """
    with self._lock:
      self._check_sound()
      try:
        newcomers = self._catalogue.newcomers(parts)
        times = [np.array(part.times, np.int64) for part in parts]
        newest = self.newest_time
        ranks = self._apply(batches.joined(parts), ranked)
        self._position = self._position + 1 if position is None else position
      except BaseException as error:
        self._failed = f'{type(error).__name__}: {error}'
        raise

    ends = np.cumsum([len(part.users) for part in parts])
    return [
      Observed(
        events=len(part.users),
        new_users=users,
        new_items=items,
        late=int(np.sum(at < newest)),
        position=self._position,
        ranks=None if ranks is None else ranks[end - len(at) : end],
      )
      for part, (users, items), at, end in zip(
        parts, newcomers, times, ends, strict=True
      )
    ]

  def _apply(self, batch: Batch, ranked: bool) -> np.ndarray | None:
    """Applies a batch, the lock held; f64[events] ranks, if asked for."""
    users, items = self._catalogue.add(batch)
    state = self._state
    state.add_nodes(self._catalogue.num_users, self._catalogue.num_items)
    self._set_texts(batch.texts)

    times = np.array(batch.times, np.int64) - self._start
    if not len(times):
      return None
    times = np.maximum(times, state.first_time())
    order = np.argsort(times, kind='stable')
    ranks = state.apply(
      live_state.Events(users[order], items[order], times[order]), ranked
    )
    if ranks is not None:
      ranks[order] = ranks.copy()
    return ranks

  def _take(self, request: Request) -> Observed:
    """Journals and applies a request, or applies it where nothing is kept."""
    if self._kept is None:
      return self.apply(request.batch, ranked=request.ranked)
    return self._kept.observe(request)

  def _set_texts(self, texts: Sequence[ItemText]) -> None:
    """Stores the embeddings of texts on the device."""
    vectors = {
      self._catalogue.item_rows[text.item]: np.frombuffer(
        text.vector, np.float16
      )
      for text in texts
      if text.vector
    }
    if vectors:
      self._state.set_texts(np.array([*vectors]), np.stack([*vectors.values()]))

  def _new_texts(self, rows: Sequence[batches.Row]) -> tuple[ItemText, ...]:
    """Texts of rows that differ from what is known, embedded."""

    def encode(texts: list[tuple[str, str, str]]) -> np.ndarray:
      return facet_bank.encode_items(
        self.config.facets.encoder,
        [facet_bank.joined_text(*text) for text in texts],
        str(loading.data_folder(self.config.data)),
      )

    return self._catalogue.new_texts(rows, encode)

  # -------------------------------------------------------------------- keeping

  @property
  def current(self) -> 'Recommender':
    """The one that has the journal: this one, or its last changeover's."""
    return self if self._successor is None else self._successor.current

  def snapshot(self) -> str:
    """Writes the state into the run folder, so that a restart replays little.

    Returns:
      The file; '' where nothing has been observed yet.

    Raises:
      InputError: if there is no journal, or the file cannot be written.
    """
    if self._kept is None:
      raise InputError(
        'snapshot: the recommender has no journal; allowed: one that was '
        'restored with its journal'
      )
    return self._kept.snapshot()

  def changeover(
    self,
    workdir: str,
    prepare: Callable[['Recommender'], object] = lambda new: None,
  ) -> 'Recommender':
    """Moves to another run, without a gap; events may come meanwhile.

    Args:
      workdir: the folder of a run that was trained with `init_from` this one's,
        or on the same log.
      prepare: called with the recommender of that run before it takes over, to
        compile what it will be asked.

    Returns:
      The recommender of that run. It has the journal now: positions go on, and
      an event that is observed at this one is applied there. This one goes on
      answering what it is still asked, from the state at the changeover.

    Raises:
      InputError: if there is no such run, it is of another journal, or this
        recommender has none; nothing is changed then.
    """
    if self._kept is None:
      raise InputError(
        'changeover: the recommender has no journal; allowed: one that was '
        'restored with its journal'
      )
    new = Recommender.restore(
      workdir,
      journal=self._kept.place,
      data_dir=self._data_dir,
      max_future_days=self._max_future / SECONDS_PER_DAY,
    )
    assert new._kept is not None
    prepare(new)
    self._kept.hand_over(new._kept)
    self._successor = new
    return new

  @property
  def needs_snapshot(self) -> bool:
    """Whether a restart would have to replay anything."""
    return self._kept is not None and self._kept.needs_snapshot()

  def start_writing(self) -> None:
    """Becomes the one process that journals, as the first event does.

    Raises:
      InputError: if another process is, or the journal cannot be written.
    """
    if self._kept is not None:
      self._kept.start_writing()

  def journaled(self) -> set[tuple[str, str, int]]:
    """User, item and time of all events of the journal; none without one.

    Raises:
      InputError: if the journal cannot be read.
    """
    return set() if self._kept is None else self._kept.journaled()

  def catch_up(self) -> None:
    """Applies all that is in the journal now; a follower does so anyway, soon.

    Raises:
      InputError: if the journal cannot be read.
    """
    if self._kept is not None:
      self._kept.catch_up()

  def close(self) -> None:
    """Lets go of the journal; questions are answered still."""
    if self._kept is not None:
      self._kept.close()

  def __enter__(self) -> 'Recommender':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def saved(self) -> Saved:
    """A copy of all that batches have changed, of one moment."""
    with self._lock:
      self._check_sound()
      record, arrays = self._state.saved()
      named = self._catalogue.saved()
      position = self._position
    content = np.frombuffer(json.dumps(named).encode(), np.uint8)
    return Saved({**record, 'position': position}, {**arrays, 'named': content})

  def start_at(self, position: int) -> None:
    """Says at which position of a journal the state stands."""
    self._position = position
