"""A trained model that recommends, and takes in what users do (SPEC 10).

    import dynllm_jax

    shop = dynllm_jax.Recommender.restore('runs/shop')
    shop.observe({'user': 'u17', 'item': 'b3', 'time': 1_700_000_000})
    print(shop.recommend('u17', k=10).titles)

Ids are those of the log. Users and items that the log does not have may come at
any time. Reading is safe from many threads beside one that writes.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import datetime
import itertools
import json
import threading
import time as time_lib
from typing import Any
from typing import NamedTuple

import numpy as np

from dynllm_jax import checks
from dynllm_jax.datasets import loading
from dynllm_jax.facets import facet_bank
from dynllm_jax.live import batches
from dynllm_jax.live import explanations
from dynllm_jax.live import live_state
from dynllm_jax.live import restore as restore_lib
from dynllm_jax.live.batches import Batch
from dynllm_jax.live.batches import ItemText
from dynllm_jax.live.batches import Observed
from dynllm_jax.live.explanations import Explanation
from dynllm_jax.live.journaling import Request
from dynllm_jax.live.keeping import Kept
from dynllm_jax.live.live_state import Saved
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import InputError
from dynllm_jax.types import SECONDS_PER_DAY
from dynllm_jax.types import SystemMemory

Time = float | datetime.datetime
_MAX_SCORES = 1 << 25  # scores of users against items that are computed at once
_MAX_SECONDS = np.iinfo(np.int32).max


class Recommendations(NamedTuple):
  """The best items of a user, the best first.

  Attributes:
    user: whose.
    items: ids; fewer than asked for where fewer are allowed.
    scores: f32[items].
    titles: '' where an item has none.
  """

  user: str
  items: list[str]
  scores: np.ndarray
  titles: list[str]


class Purchase(NamedTuple):
  """An event of a user.

  Attributes:
    item: which item.
    title: its title, '' without one.
    time: unix seconds.
  """

  item: str
  title: str
  time: int


class TopItems(NamedTuple):
  """The best items of several users as arrays, the best first.

  Attributes:
    users: whose.
    items: i32[users, k], rows of `Recommender.items`, counted from 1.
    scores: f32[users, k]; -inf where there is no further item.
  """

  users: list[str]
  items: np.ndarray
  scores: np.ndarray


class Frozen(NamedTuple):
  """A system with its state, for whoever computes with it elsewhere.

  Attributes:
    bound: the system, its parameters and what it reads.
    memory: after the newest event.
    num_items: that there are; tables may have room for more.
    start: unix seconds of the log's first event.
    seconds: after that, just after the newest event.
  """

  bound: BoundSystem
  memory: SystemMemory
  num_items: int
  start: int
  seconds: int


class Similar(NamedTuple):
  """Items like an item, the most alike first.

  Attributes:
    item: like which.
    items: ids.
    cosines: f32[items], of the items' vectors.
    titles: '' where an item has none.
  """

  item: str
  items: list[str]
  cosines: np.ndarray
  titles: list[str]


class Recommender:
  """A trained model with the state of its users and items.

  Made by `restore`.

  Args:
    restored: the run.
    max_future_days: how far ahead of this machine's clock an event's time may
      be.
  """

  def __init__(
    self, restored: restore_lib.Restored, max_future_days: float = 1.0
  ) -> None:
    log = restored.log
    self.config = restored.config
    self.name = restored.name
    self.identity = restored.identity
    self._state = restored.state
    self._facets = restored.facets
    self._start = log.start_time
    self._max_future = max_future_days * SECONDS_PER_DAY
    self._position = 0
    self._failed = ''
    self._kept: Kept | None = None  # where there is a journal
    self._data_dir: str | None = None
    self._log_users = len(log.user_ids)
    self._log_items = len(log.item_ids)
    self._changed_texts: set[int] = set()

    self._user_ids = [str(name) for name in log.user_ids]
    self._item_ids = [str(name) for name in log.item_ids]
    self._user_rows = {name: row for row, name in enumerate(self._user_ids)}
    self._item_rows = {name: row for row, name in enumerate(self._item_ids)}
    # Row 0 is padding, and no id is empty.
    del self._user_rows[''], self._item_rows['']
    columns = (log.titles, log.categories, log.brands)
    self._texts = [list(map(str, column)) for column in columns]
    self._category_masks: dict[str, np.ndarray] = {}
    # Held while a state is read or changed, not while an answer is computed.
    self._lock = threading.RLock()

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
        as an evaluation does before the rest is observed. Facets are those of
        the whole prepared log all the same: each serves from its close on.
      data_dir: where prepared data are now, if not where they were.
      max_future_days: how far ahead of this machine's clock an event's time
        may be.

    Raises:
      InputError: for whatever is wrong with the folder, or gone.
    """
    restored = restore_lib.restore(workdir, until, data_dir)
    recommender = cls(restored, max_future_days)
    recommender._data_dir = data_dir
    if journal is not None and until == 'log':
      recommender._kept = kept = Kept(recommender, workdir, journal, restored)
      kept.replay()
      if follow:
        kept.follow()
    return recommender

  # -------------------------------------------------------------- what it knows

  @property
  def position(self) -> int:
    """Batches applied since it was restored."""
    return self._position

  @property
  def newest_time(self) -> int:
    """Unix seconds of the newest event."""
    return self._start + self._state.newest

  @property
  def users(self) -> Sequence[str]:
    """Ids of all users, in the order in which they came."""
    return self._user_ids[1:]

  @property
  def items(self) -> Sequence[str]:
    """Ids of all items, in the order in which they came."""
    return self._item_ids[1:]

  @property
  def titles(self) -> Sequence[str]:
    """Titles of `items`, '' where one has none."""
    return self._texts[0][1:]

  @property
  def takes_newcomers(self) -> bool:
    """Whether users and items that training has not seen are welcome."""
    return self._state.system.feed != 'shuffled'

  def has_user(self, user: str) -> bool:
    """Whether a user has had an event."""
    return user in self._user_rows

  def has_item(self, item: str) -> bool:
    """Whether an item is in the catalogue."""
    return item in self._item_rows

  def title(self, item: str) -> str:
    """An item's title, '' without one.

    Raises:
      InputError: if there is no such item.
    """
    return self._texts[0][self._item_row('item', item)]

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
      ('user', batch.users, self._user_rows),
      ('item', batch.items, self._item_rows),
      ('item', [text.item for text in batch.texts], self._item_rows),
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
        newcomers = self._newcomers(parts)
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

  def _newcomers(self, parts: Sequence[Batch]) -> list[tuple[int, int]]:
    """How many users and items each part is the first to name."""
    users: set[str] = set()
    items: set[str] = set()
    counts = []
    for part in parts:
      before = len(users), len(items)
      users.update(name for name in part.users if name not in self._user_rows)
      named = itertools.chain(part.items, (text.item for text in part.texts))
      items.update(name for name in named if name not in self._item_rows)
      counts.append((len(users) - before[0], len(items) - before[1]))
    return counts

  def _apply(self, batch: Batch, ranked: bool) -> np.ndarray | None:
    """Applies a batch, the lock held; f64[events] ranks, if asked for."""
    known_items = len(self._item_ids)
    users = self._rows_of(batch.users, self._user_ids, self._user_rows)
    self._rows_of(
      [text.item for text in batch.texts], self._item_ids, self._item_rows
    )
    items = self._rows_of(batch.items, self._item_ids, self._item_rows)
    for column in self._texts:
      column.extend([''] * (len(self._item_ids) - len(column)))
    state = self._state
    state.add_nodes(len(self._user_ids) - 1, len(self._item_ids) - 1)
    if len(self._item_ids) > known_items or batch.texts:
      self._category_masks = {}
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

  def _rows_of(
    self, names: Iterable[str], ids: list[str], rows: dict[str, int]
  ) -> np.ndarray:
    """Rows of ids, i32; those that are new get the next ones."""
    found = []
    for name in names:
      row = rows.get(name)
      if row is None:
        row = rows[name] = len(ids)
        ids.append(name)
      found.append(row)
    return np.array(found, np.int32)

  def _set_texts(self, texts: Sequence[ItemText]) -> None:
    """Stores texts of items, on the host and on the device."""
    vectors = {}
    for text in texts:
      row = self._item_rows[text.item]
      self._changed_texts.add(row)
      for column, value in zip(self._texts, text[1:4]):
        column[row] = value
      if text.vector:
        vectors[row] = np.frombuffer(text.vector, np.float16)
    if vectors:
      self._state.set_texts(np.array([*vectors]), np.stack([*vectors.values()]))

  def _new_texts(self, rows: Sequence[batches.Row]) -> tuple[ItemText, ...]:
    """Texts of rows that differ from what is known, the last of each item."""
    new: dict[str, tuple[str, str, str]] = {}
    for row in rows:
      given = row[3:]
      if all(text is None for text in given):
        continue
      at = self._item_rows.get(row.item)
      known = tuple('' if at is None else column[at] for column in self._texts)
      before = new.get(row.item, known)
      after = tuple(
        old if text is None else text for old, text in zip(before, given)
      )
      if after != known or at is None:
        new[row.item] = after  # type: ignore[assignment]
      else:
        new.pop(row.item, None)
    if not new:
      return ()

    vectors = facet_bank.encode_items(
      self.config.facets.encoder,
      [facet_bank.joined_text(*text) for text in new.values()],
      str(loading.data_folder(self.config.data)),
    )
    return tuple(
      ItemText(item, *text, vector=vector.astype(np.float16).tobytes())
      for (item, text), vector in zip(new.items(), vectors)
    )

  # -------------------------------------------------------------------- keeping

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

  def changeover(self, workdir: str) -> 'Recommender':
    """Moves to another run, without a gap; events may come meanwhile.

    Args:
      workdir: the folder of a run that was trained with `init_from` this one's,
        or on the same log.

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
    self._kept.hand_over(new._kept)
    return new

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
      named = {
        'users': self._user_ids[self._log_users :],
        'items': self._item_ids[self._log_items :],
        'texts': {
          row: [column[row] for column in self._texts]
          for row in sorted(self._changed_texts)
        },
      }
      position = self._position
    content = np.frombuffer(json.dumps(named).encode(), np.uint8)
    return Saved({**record, 'position': position}, {**arrays, 'named': content})

  def start_at(self, position: int) -> None:
    """Says at which position of a journal the state stands."""
    self._position = position

  def load(self, saved: Saved) -> None:
    """Becomes what was saved.

    Args:
      saved: by a recommender of the same run; this one has applied nothing.

    Raises:
      KeyError: if something is missing; nothing is changed then.
    """
    arrays = dict(saved.arrays)
    named = json.loads(bytes(np.asarray(arrays.pop('named'))))
    with self._lock:
      self._state.load(Saved(saved.record, arrays))
      self._rows_of(named['users'], self._user_ids, self._user_rows)
      self._rows_of(named['items'], self._item_ids, self._item_rows)
      for column in self._texts:
        column.extend([''] * (len(self._item_ids) - len(column)))
      for row, texts in named['texts'].items():
        self._changed_texts.add(int(row))
        for column, text in zip(self._texts, texts, strict=True):
          column[int(row)] = text
      self._category_masks = {}
      self._position = saved.record['position']

  # -------------------------------------------------------------------- reading

  def recommend(
    self,
    users: Any,
    k: int = 10,
    time: Time | None = None,
    *,
    exact: bool = False,
    exclude_seen: bool = False,
    candidates: Iterable[str] | None = None,
    categories: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
  ) -> Any:
    """The items that a user is likeliest to take next.

    Args:
      users: one id, or several. One that is not known is answered from what is
        known of every user.
      k: how many items.
      time: when, unix seconds or a datetime, not before the newest event; users
        and all items are embedded as they are then. None: just after the newest
        event, items as they were last embedded (SPEC 10.3), which is fast.
      exact: without a time, embed all items anew as well.
      exclude_seen: leave out what the user has taken before.
      candidates: the items to choose from; None: all.
      categories: only items of these.
      exclude: items to leave out; those that are not known are ignored.

    Returns:
      `Recommendations`, a list of them for several users.

    Raises:
      InputError: naming an argument that is not allowed.
    """
    one = isinstance(users, (str, int))
    found = self.top(
      [users] if one else users,
      k,
      time,
      exact=exact,
      exclude_seen=exclude_seen,
      candidates=candidates,
      categories=categories,
      exclude=exclude,
    )
    answers = [
      self._recommendations(user, scores, items)
      for top in found
      for user, scores, items in zip(top.users, top.scores, top.items)
    ]
    return answers[0] if one else answers

  def top(
    self,
    users: Iterable[str | int],
    k: int = 10,
    time: Time | None = None,
    *,
    exact: bool = False,
    exclude_seen: bool = False,
    candidates: Iterable[str] | None = None,
    categories: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
  ) -> Iterator[TopItems]:
    """As `recommend`, of many users, as arrays; a batch of users at a time.

    Args:
      users: ids.
      k, time, exact, exclude_seen, candidates, categories, exclude: as those
        of `recommend`.

    Returns:
      The users in order. The next batch is computed while one is looked at.

    Raises:
      InputError: as `recommend`, before the first batch.
    """
    names = self._user_names('users', users)
    with self._lock:
      self._check_k(k)
      at = self._read_time(time, exact)
      rows = self._known_users(names)
      allowed = self._allowed(candidates, categories, exclude)

    def ask(chosen: slice) -> tuple[Array, Array, Array]:
      with self._lock:
        self._check_sound()
        mask = self._mask(allowed, rows[chosen], exclude_seen, at)
        return self._state.top(rows[chosen], mask, k, at)

    def answers() -> Iterator[TopItems]:
      step = self._users_at_once()
      spans = [slice(i, i + step) for i in range(0, len(names), step)]
      asked = map(ask, spans)
      coming = next(asked, None)
      for span in spans:
        found, coming = coming, next(asked, None)
        assert found is not None
        scores, items, finite = map(np.asarray, found)
        if not finite:
          raise _diverged()
        chosen = names[span]
        yield TopItems(
          chosen, items[: len(chosen), :k], scores[: len(chosen), :k]
        )

    return answers()

  def recommend_guest(
    self,
    session: Iterable[tuple[str, Time]],
    k: int = 10,
    *,
    exclude_seen: bool = False,
    candidates: Iterable[str] | None = None,
    categories: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
  ) -> Recommendations:
    """The items that a guest is likeliest to take next (SPEC 10.3).

    The answer is the one that a new user would have after these events had been
    observed in one call; neither the guest nor an event is remembered.

    Args:
      session: items, which must be known, and when the guest took them; at
        least one, at most 2,048.
      k, exclude_seen, candidates, categories, exclude: as those of `recommend`.

    Raises:
      InputError: naming what is not allowed.
    """
    rows = batches.event_rows(
      [{'user': 'guest', 'item': i, 'time': t} for i, t in session],
      self._latest_time(),
    )
    if not 1 <= len(rows) <= live_state.MAX_BATCH:
      raise checks.not_allowed(
        'session', len(rows), f'1 to {live_state.MAX_BATCH} events'
      )
    with self._lock:
      self._check_sound()
      self._check_k(k)
      allowed = self._allowed(candidates, categories, exclude)
      items = np.array(
        [
          self._item_row(f'session[{number}].item', row.item)
          for number, row in enumerate(rows)
        ],
        np.int32,
      )
      self._check_can_grow()
      start, fork = self._start, self._state.forked()

    # One row more than there are users is the guest's, in the copy alone.
    guest = fork.num_users + 1
    fork.add_nodes(guest, fork.num_items)
    times = np.array([row.time for row in rows], np.int64) - start
    times = np.maximum(times, fork.first_time())
    order = np.argsort(times, kind='stable')
    users = np.full([len(rows)], guest, np.int32)
    fork.apply(live_state.Events(users, items[order], times[order]))
    if exclude_seen:
      allowed[items - 1] = False
    scores, best, finite = map(
      np.asarray, fork.top(np.array([guest], np.int32), allowed[None], k)
    )
    if not finite:
      raise _diverged()
    return self._recommendations('', scores[0, :k], best[0, :k])

  def warm_up(self, most: int = 64) -> None:
    """Compiles what observing runs; nothing is observed, and nothing changes.

    Args:
      most: events of a call, up to which sizes are compiled.
    """
    with self._lock:
      self._check_sound()
      fork = self._state.forked()
    for size in (size for size in live_state.SIZES if size <= most):
      users = 1 + np.arange(size, dtype=np.int32) % fork.num_users
      items = 1 + np.arange(size, dtype=np.int32) % fork.num_items
      # A new time, and the same one again.
      times = np.full([size], fork.newest + 1, np.int64)
      for _ in range(2):
        fork.apply(live_state.Events(users, items, times))

  def frozen(self) -> Frozen:
    """A copy of the state, which later events leave alone."""
    with self._lock:
      self._check_sound()
      fork = self._state.forked()
      return Frozen(
        fork.bound,
        fork.memory_at(fork.newest + 1),
        fork.num_items,
        int(self._start),
        fork.newest + 1,
      )

  def purchases(self, user: str, last: int = 50) -> list[Purchase]:
    """What a user took, the newest first.

    Args:
      user: an id; one that is not known took nothing.
      last: how many.
    """
    with self._lock:
      row = self._user_rows.get(user, 0)
      items, times = self._state.user_graph.row(row)
      return [
        Purchase(
          item=self._item_ids[item],
          title=self._texts[0][item],
          time=self._start + time,
        )
        for item, time in zip(
          items[-last:][::-1].tolist(), times[-last:][::-1].tolist()
        )
      ]

  def score(
    self,
    users: Any,
    items: Sequence[str],
    time: Time | None = None,
    *,
    exact: bool = False,
  ) -> np.ndarray:
    """Scores of items for users, as `recommend` compares them.

    Args:
      users: one id, or several.
      items: ids.
      time, exact: as those of `recommend`.

    Returns:
      f32[items] for one user, f32[users, items] for several.

    Raises:
      InputError: if there is no such item, or an argument is not allowed.
    """
    one = isinstance(users, (str, int))
    names = self._user_names('users', [users] if one else users)
    with self._lock:
      at = self._read_time(time, exact)
      rows = self._known_users(names)
      columns = np.array(
        [
          self._item_row(f'items[{number}]', item)
          for number, item in enumerate(items)
        ],
        np.int32,
      )

    blocks = []
    for start in range(0, len(names), step := self._users_at_once()):
      chosen = rows[start : start + step]
      with self._lock:
        self._check_sound()
        scores = self._state.scores(chosen, at)
      blocks.append(np.asarray(scores)[: len(chosen), columns - 1])
    scores = np.concatenate(blocks)
    return scores[0] if one else scores

  def similar_items(self, item: str, k: int = 10) -> Similar:
    """The items whose vectors point most nearly where an item's does.

    Args:
      item: an id.
      k: how many.

    Raises:
      InputError: if there is no such item, or k is not allowed.
    """
    with self._lock:
      self._check_sound()
      self._check_k(k)
      row = self._item_row('item', item)
      found = self._state.similar(np.array([row]), k)
    cosines, items = (np.asarray(column)[0, :k] for column in found)
    there = np.isfinite(cosines)
    rows = items[there].tolist()
    return Similar(
      item=item,
      items=[self._item_ids[row] for row in rows],
      cosines=cosines[there],
      titles=[self._texts[0][row] for row in rows],
    )

  def explain(
    self,
    user: str | int,
    item: str,
    time: Time | None = None,
    *,
    exact: bool = False,
  ) -> Explanation:
    """Why an item has its score for a user (SPEC 10.4).

    Args:
      user, item: ids.
      time, exact: as those of `recommend`.

    Raises:
      InputError: if there is no such item, or an argument is not allowed.
    """
    (name,) = self._user_names('user', [user])
    with self._lock:
      self._check_sound()
      (row,) = self._known_users([name])
      at = self._read_time(time, exact)
      asked = explanations.Question(
        user=int(row),
        item=self._item_row('item', item),
        time=self._state.newest + 1 if at is None else at,
        cached=at is None,
      )
      names = explanations.Names(
        users=self._user_ids,
        items=self._item_ids,
        titles=self._texts[0],
        start=self._start,
        fanout=tuple(self.config.model.get('walk_fanout', ())),
        facets=self._facets,
      )

      found = explanations.explain(self._state, names, asked)
    return found._replace(user=name)

  def _recommendations(
    self, user: str, scores: np.ndarray, items: np.ndarray
  ) -> Recommendations:
    """An answer; items whose score is -inf are not allowed."""
    there = np.isfinite(scores)
    rows = items[there].tolist()
    return Recommendations(
      user=user,
      items=[self._item_ids[row] for row in rows],
      scores=scores[there],
      titles=[self._texts[0][row] for row in rows],
    )

  def _users_at_once(self) -> int:
    """How many users are answered by one program."""
    width = self._state.bound.inputs.num_items
    return 512 if 512 * width <= _MAX_SCORES else 8

  def _read_time(self, time: Time | None, exact: bool) -> int | None:
    """The time of a question in seconds of the log's timeline."""
    if time is None:
      return self._state.newest + 1 if exact else None
    latest = self._start + _MAX_SECONDS
    seconds = batches.as_time('time', time, latest)
    if seconds < self.newest_time:
      raise checks.not_allowed(
        'time',
        time,
        f'the time of the newest event, {self.newest_time}, or later',
      )
    return seconds - self._start

  def _latest_time(self) -> float:
    """Unix seconds of the latest time that an event may have now."""
    latest = time_lib.time() + self._max_future
    return min(latest, self._start + _MAX_SECONDS - 1)

  def _check_can_grow(self) -> None:
    """Stops where a system knows no other users than those of its training."""
    if self._state.system.feed == 'shuffled':
      raise InputError(
        f'session: {self.name} learns its users in training alone; allowed: '
        'users of the run, or a system with a memory'
      )

  def _check_k(self, k: int) -> None:
    count = len(self._item_ids) - 1
    is_count = isinstance(k, (int, np.integer)) and not isinstance(k, bool)
    if not is_count or not 1 <= k <= count:
      raise checks.not_allowed('k', k, f'1 to the number of items, {count}')

  def _check_sound(self) -> None:
    """Stops after a failure in the middle of a batch."""
    if self._failed:
      raise InputError(
        f'the recommender failed in the middle of a batch ({self._failed}); '
        'allowed: to restore it'
      )

  def _user_names(self, field: str, users: Any) -> list[str]:
    """Ids of users, checked."""
    if not isinstance(users, Iterable):
      raise checks.not_allowed(field, users, 'an id, or several')
    return [
      batches.as_id(f'{field}[{number}]', user)
      for number, user in enumerate(users)
    ]

  def _known_users(self, names: Sequence[str]) -> np.ndarray:
    """Rows of users, 0 for those who are not known."""
    rows = np.array([self._user_rows.get(n, 0) for n in names], np.int32)
    if self._state.system.feed == 'shuffled' and not rows.all():
      unknown = names[int(np.argmin(rows))]
      raise InputError(
        f'users: {unknown!r} is not known to the run, and {self.name} learns '
        'its users in training alone; allowed: users of the run'
      )
    return rows

  def _item_row(self, field: str, item: Any) -> int:
    """The row of an item.

    Raises:
      InputError: if there is no such item.
    """
    row = self._item_rows.get(batches.as_id(field, item))
    if row is None:
      raise InputError(
        f'{field}: there is no item {item!r}; allowed: an item of the log, or '
        'one that was added since'
      )
    return row

  def _allowed(
    self,
    candidates: Iterable[str] | None,
    categories: Iterable[str] | None,
    exclude: Iterable[str] | None,
  ) -> np.ndarray:
    """bool[items], item 1 first: what may be recommended to anybody."""
    count = len(self._item_ids) - 1
    allowed = np.ones(count, bool)
    if candidates is not None:
      rows = [
        self._item_row(f'candidates[{number}]', item)
        for number, item in enumerate(candidates)
      ]
      allowed[:] = False
      allowed[np.array(rows, int) - 1] = True
    if categories is not None:
      of_category = [self._category_mask(name) for name in categories]
      allowed &= np.logical_or.reduce([np.zeros(count, bool), *of_category])
    if exclude is not None:
      rows = [self._item_rows.get(str(item), 0) for item in exclude]
      allowed[np.array([row for row in rows if row], int) - 1] = False
    return allowed

  def _category_mask(self, name: str) -> np.ndarray:
    """bool[items]: which are of a category.

    Raises:
      InputError: if none is.
    """
    if name not in self._category_masks:
      mask = np.array([other == name for other in self._texts[1][1:]], bool)
      if not mask.any():
        raise InputError(
          f'categories: no item is of {name!r}; allowed: categories of the '
          'item table'
        )
      self._category_masks[name] = mask
    return self._category_masks[name]

  def _mask(
    self, allowed: np.ndarray, users: np.ndarray, unseen: bool, at: int | None
  ) -> np.ndarray:
    """bool[users or 1, items]: what may be recommended to each."""
    count = len(self._item_ids) - 1
    # Items may have come since the question was read.
    allowed = np.pad(allowed, (0, count - len(allowed)))
    if not unseen:
      return allowed[None]
    mask = np.repeat(allowed[None], len(users), axis=0)
    for row, user in enumerate(users):
      items, times = self._state.user_graph.row(user)
      if at is not None:
        items = items[times < at]
      mask[row, items - 1] = False
    return mask


def _diverged() -> InputError:
  return InputError(
    'a score is not finite: the parameters of the run have diverged; allowed: '
    'a run with a lower config.train.learning_rate'
  )
