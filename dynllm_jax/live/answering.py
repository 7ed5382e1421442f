"""What a recommender answers, and how a question is checked.

Reading is safe from many threads beside one that writes: a lock is held while
the state is read or changed, not while an answer is computed.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import datetime
import pathlib
import threading
import time as time_lib
from typing import Any

import numpy as np

from dynllm_jax import checks
from dynllm_jax.live import batches
from dynllm_jax.live import explanations
from dynllm_jax.live import live_state
from dynllm_jax.live import programs
from dynllm_jax.live import restore as restore_lib
from dynllm_jax.live import warming
from dynllm_jax.live.answers import Frozen
from dynllm_jax.live.answers import Purchase
from dynllm_jax.live.answers import Recommendations
from dynllm_jax.live.answers import Similar
from dynllm_jax.live.answers import TopItems
from dynllm_jax.live.catalogue import Catalogue
from dynllm_jax.live.explanations import Explanation
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.types import Array
from dynllm_jax.types import InputError
from dynllm_jax.types import SECONDS_PER_DAY

Time = float | datetime.datetime
_MAX_SCORES = 1 << 25  # scores of users against items that are computed at once
# The last second of the device's times is that of facets which never serve.
_MAX_SECONDS = np.iinfo(np.int32).max - 1


class Answering:
  """A trained model with the state of its users and items, to be asked.

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
    log = run.prepared.log
    self.workdir = run.workdir
    self.config = run.config
    self.name = run.prepared.name
    self.identity = run.prepared.identity
    self._state = state
    self._facets = run.facets
    self._start = log.start_time
    self._max_future = max_future_days * SECONDS_PER_DAY
    self._position = 0
    self._failed = ''
    self._catalogue = Catalogue(log)
    # Held while a state is read or changed, not while an answer is computed.
    self._lock = threading.RLock()

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
  def num_users(self) -> int:
    """How many users there are."""
    return self._catalogue.num_users

  @property
  def num_items(self) -> int:
    """How many items there are."""
    return self._catalogue.num_items

  @property
  def has_vectors(self) -> bool:
    """Whether items have vectors; a system that only counts has none."""
    return self._state.has_vectors

  @property
  def run(self) -> str:
    """The name of the run's folder."""
    return pathlib.PurePath(self.workdir).name

  @property
  def users(self) -> Sequence[str]:
    """Ids of all users, in the order in which they came."""
    return self._catalogue.users[1:]

  @property
  def items(self) -> Sequence[str]:
    """Ids of all items, in the order in which they came."""
    return self._catalogue.items[1:]

  @property
  def titles(self) -> Sequence[str]:
    """Titles of `items`, '' where one has none."""
    return self._catalogue.titles[1:]

  @property
  def takes_newcomers(self) -> bool:
    """Whether users and items that training has not seen are welcome."""
    return self._state.system.feed != 'shuffled'

  def has_user(self, user: str) -> bool:
    """Whether a user has had an event."""
    return user in self._catalogue.user_rows

  def has_item(self, item: str) -> bool:
    """Whether an item is in the catalogue."""
    return item in self._catalogue.item_rows

  def title(self, item: str) -> str:
    """An item's title, '' without one.

    Raises:
      InputError: if there is no such item.
    """
    return self._catalogue.titles[self._catalogue.item_row('item', item)]

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
      allowed = self._catalogue.allowed(candidates, categories, exclude)

    step = self._users_at_once()

    def ask(chosen: slice) -> tuple[Array, Array, Array]:
      asked = rows[chosen]
      if len(rows) > step:  # the last are no reason for another program
        asked = programs.pad_rows(asked, step)
      with self._lock:
        self._check_sound()
        mask = self._mask(allowed, asked, exclude_seen, at)
        return self._state.top(asked, mask, k, at)

    def answers() -> Iterator[TopItems]:
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
    if not 1 <= len(rows) <= programs.MAX_BATCH:
      raise checks.not_allowed(
        'session', len(rows), f'1 to {programs.MAX_BATCH} events'
      )
    with self._lock:
      self._check_sound()
      self._check_k(k)
      allowed = self._catalogue.allowed(candidates, categories, exclude)
      items = np.array(
        [
          self._catalogue.item_row(f'session[{number}].item', row.item)
          for number, row in enumerate(rows)
        ],
        np.int32,
      )
      self._check_can_grow()

      # One row more than there are users is the guest's, in a copy alone. What
      # the copy shares may be donated by the next batch: until the device has
      # been asked, none may come.
      fork = self._state.forked()
      guest = fork.num_users + 1
      fork.add_nodes(guest, fork.num_items)
      times = np.array([row.time for row in rows], np.int64) - self._start
      times = np.maximum(times, fork.first_time())
      order = np.argsort(times, kind='stable')
      users = np.full([len(rows)], guest, np.int32)
      fork.apply(live_state.Events(users, items[order], times[order]))
      if exclude_seen:
        allowed[items - 1] = False
      found = fork.top(np.array([guest], np.int32), allowed[None], k)

    scores, best, finite = map(np.asarray, found)
    if not finite:
      raise _diverged()
    return self._recommendations('', scores[0, :k], best[0, :k])

  def warm_up(self, most: int | None = None) -> Iterator[None]:
    """Compiles what observing runs; nothing is observed, and nothing changes.

    Args:
      most: events of a call, up to which sizes are compiled; None: all sizes.

    Yields:
      After each of a few steps.
    """
    with self._lock:
      self._check_sound()
      fork = self._state.forked(texts=True)
    yield from warming.steps(fork, most)

  def frozen(self) -> Frozen:
    """A copy of the state, which later events leave alone."""
    with self._lock:
      self._check_sound()
      fork = self._state.forked(texts=True)
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
      row = self._catalogue.user_row(user)
      items, times = self._state.user_graph.row(row)
      return [
        Purchase(
          item=self._catalogue.items[item],
          title=self._catalogue.titles[item],
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
          self._catalogue.item_row(f'items[{number}]', item)
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
      InputError: if there is no such item, k is not allowed, or the system has
        no vectors.
    """
    with self._lock:
      self._check_sound()
      self._check_k(k)
      row = self._catalogue.item_row('item', item)
      if not self.has_vectors:
        raise InputError(
          f'similar_items: {self.name} only counts, and its items have no '
          'vectors; allowed: a system that learns, or content'
        )
      found = self._state.similar(np.array([row]), k)
    cosines, items = (np.asarray(column)[0, :k] for column in found)
    there = np.isfinite(cosines)
    rows = items[there].tolist()
    return Similar(
      item=item,
      items=[self._catalogue.items[row] for row in rows],
      cosines=cosines[there],
      titles=[self._catalogue.titles[row] for row in rows],
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
        item=self._catalogue.item_row('item', item),
        time=self._state.newest + 1 if at is None else at,
        cached=at is None,
      )
      names = explanations.Names(
        users=self._catalogue.users,
        items=self._catalogue.items,
        titles=self._catalogue.titles,
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
      items=[self._catalogue.items[row] for row in rows],
      scores=scores[there],
      titles=[self._catalogue.titles[row] for row in rows],
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
    count = self._catalogue.num_items
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
    rows = np.array([*map(self._catalogue.user_row, names)], np.int32)
    if self._state.system.feed == 'shuffled' and not rows.all():
      unknown = names[int(np.argmin(rows))]
      raise InputError(
        f'users: {unknown!r} is not known to the run, and {self.name} learns '
        'its users in training alone; allowed: users of the run'
      )
    return rows

  def _mask(
    self, allowed: np.ndarray, users: np.ndarray, unseen: bool, at: int | None
  ) -> np.ndarray:
    """bool[users or 1, items]: what may be recommended to each."""
    count = self._catalogue.num_items
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
