"""The journal: batches of events, in the order in which they are applied.

A batch is journaled before it is applied, and acknowledged only once it is on
the disk. So whatever was acknowledged is in the journal, and whoever applies
its batches in order, after a restart or on another machine, holds the same
state.

It is a database behind SQLAlchemy: SQLite in a file (write-ahead log, every
commit synced), or PostgreSQL by URL, for several machines. One process appends,
any number read:

    dynllm_journal     its version and its identity
    dynllm_runs        the runs that it serves, and which of its batches each
                       has in its own log already
    dynllm_batches     position (1, 2, ... without a gap), payload, digest
    dynllm_event_ids   ids that clients gave their events, to send them again
                       without being counted twice

A digest covers the payload, its position and the digest before it; the first
one starts from the journal's identity. A position with its digest (`Tip`) thus
names all that was journaled up to it: a reader finds out at once that rows were
changed, lost, or come from a journal that went another way.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import hashlib
import json
import pathlib
import threading
from typing import Any
from typing import NamedTuple
import uuid

import sqlalchemy as sa
from sqlalchemy import exc

from dynllm_jax.live import journal_database as database
from dynllm_jax.live.journal_database import JournalError
from dynllm_jax.storage import locks

_VERSION = 1
_DIGEST_BYTES = 16
_ROWS = 256  # of one question to the database


class Tip(NamedTuple):
  """A position and the digest there: all that was journaled up to it."""

  position: int
  digest: bytes


class Entry(NamedTuple):
  """A batch of the journal: where it is, and what was journaled."""

  tip: Tip
  payload: str


def event_digest(*parts: Any) -> bytes:
  """What an event says, as JSON values, in 8 bytes: kept beside its id."""
  return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()


def full_name(place: str | pathlib.Path) -> str:
  """A journal's place, the same however it is written, without a password.

  Args:
    place: as in `exists`.

  Raises:
    JournalError: if it is of another kind of database.
  """
  path = database.sqlite_path(place)
  if path is not None:
    return str(path.resolve())
  return database.url(place).render_as_string(hide_password=True)


def exists(place: str | pathlib.Path) -> bool:
  """Whether there is a journal at a place.

  Args:
    place: a file, or a URL of SQLAlchemy.

  Raises:
    JournalError: if the database cannot be reached, or is of another kind.
  """
  path = database.sqlite_path(place)
  if path is not None and not path.is_file():
    return False
  url = database.url(place)
  with database.errors(str(path or url.render_as_string(hide_password=True))):
    engine = database.engine(url)
    try:
      # Not the file: it is there before the tables are committed.
      return sa.inspect(engine).has_table(database.ABOUT.name)
    finally:
      engine.dispose()


class Journal:
  """A journal that is read. Threads may share it.

  Args:
    place: a file, or a URL of SQLAlchemy.

  Raises:
    JournalError: if there is no journal, it is damaged, or it is of a later
      version.
  """

  def __init__(self, place: str | pathlib.Path) -> None:
    url = database.url(place)
    path = database.sqlite_path(place)
    self.place = str(path or url.render_as_string(hide_password=True))
    if path is not None and not path.is_file():
      raise JournalError(f'{path}: there is no journal')
    with self._errors():
      self._engine = database.engine(url)
      self._prepare()
      self._read_about()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Closes the connections."""
    self._engine.dispose()

  @property
  def start(self) -> Tip:
    """The tip of the journal before its first batch."""
    return Tip(0, bytes.fromhex(self.identity))

  def tip(self) -> Tip:
    """The last batch, or the start.

    Raises:
      JournalError: if the journal cannot be read.
    """
    with self._errors(), self._engine.connect() as connection:
      return self._tip_of(connection)

  def tip_at(self, position: int) -> Tip:
    """The batch at a position, 0 for the start.

    Raises:
      JournalError: if there is none.
    """
    if not position:
      return self.start
    with self._errors(), self._engine.connect() as connection:
      found = connection.scalar(
        sa.select(database.BATCHES.c.digest).where(
          database.BATCHES.c.position == position
        )
      )
    if found is None:
      raise JournalError(f'{self.place}: it has no batch {position}')
    return Tip(position, found)

  def read(self, after: Tip) -> Iterator[Entry]:
    """The batches that follow a tip, in order; each is checked.

    Args:
      after: `start`, or of an entry or a snapshot.

    Raises:
      JournalError: if the journal has no such tip, or a batch is missing or
        is not what was journaled.
    """
    self.check_holds(after)
    query = sa.select(
      database.BATCHES.c.position,
      database.BATCHES.c.digest,
      database.BATCHES.c.payload,
    ).order_by(database.BATCHES.c.position)
    while True:
      with self._errors(), self._engine.connect() as connection:
        rows = connection.execute(
          query.where(database.BATCHES.c.position > after.position).limit(_ROWS)
        ).all()

      for position, digest, payload in rows:
        if position != after.position + 1:
          raise JournalError(
            f'{self.place}: batch {after.position + 1} is missing; a whole '
            'copy of the journal is needed'
          )
        if digest != _next_digest(after, payload):
          raise JournalError(
            f'{self.place}: batch {position} is not as it was journaled; a '
            'sound copy of the journal is needed'
          )
        after = Tip(position, digest)
        yield Entry(after, payload)
      if len(rows) < _ROWS:
        return

  def check_holds(self, tip: Tip) -> None:
    """Stops where a tip is not of this journal.

    Raises:
      JournalError: saying what is there instead.
    """
    if tip == self.start:
      return
    with self._errors(), self._engine.connect() as connection:
      found = connection.scalar(
        sa.select(database.BATCHES.c.digest).where(
          database.BATCHES.c.position == tip.position
        )
      )
    if found != tip.digest:
      raise JournalError(
        f'{self.place}: '
        + (
          f'its batch {tip.position} is another one'
          if found
          else f'it has no batch {tip.position}'
        )
        + ' than what the state was made of; allowed: the journal of that '
        'state, whole'
      )

  def event_digests(self, ids: Sequence[str]) -> dict[str, bytes]:
    """What was journaled under ids of events, those that are known.

    Args:
      ids: given by clients.

    Returns:
      By id, the `event_digest` of the event.
    """
    found: dict[str, bytes] = {}
    with self._errors(), self._engine.connect() as connection:
      for start in range(0, len(ids), _ROWS):
        wanted = ids[start : start + _ROWS]
        rows = connection.execute(
          sa.select(
            database.EVENT_IDS.c.id,
            database.EVENT_IDS.c.event_digest,
          ).where(database.EVENT_IDS.c.id.in_(wanted))
        )
        found.update((name, digest) for name, digest in rows)
    return found

  def covers(self, run: str) -> int:
    """How many batches a run had in its log when it was trained.

    Args:
      run: its name, as `JournalWriter.serve` was given it.

    Raises:
      JournalError: if the journal is that of other runs.
    """
    with self._errors(), self._engine.connect() as connection:
      rows = connection.execute(
        sa.select(
          database.RUNS.c.run,
          database.RUNS.c.covers,
          database.RUNS.c.about,
        )
      ).all()
    for name, covers, _ in rows:
      if name == run:
        return int(covers)
    others = '; '.join(row.about for row in rows)
    raise JournalError(
      f'{self.place}: it is the journal of another run ({others or "none yet"}'
      "); allowed: this run's own, or that of a run which it went on from"
    )

  # ------------------------------------------------------------- opening

  def _prepare(self) -> None:
    """What a writer does before the journal is read."""

  def _read_about(self) -> None:
    with self._engine.connect() as connection:
      rows = connection.execute(
        sa.select(database.ABOUT.c.name, database.ABOUT.c.value)
      ).all()
    about = {row.name: row.value for row in rows}
    if about.get('version') != str(_VERSION):
      raise JournalError(
        f'{self.place}: it is a journal of version {about.get("version")}; '
        f'allowed: {_VERSION}, of this version of dynllm_jax'
      )
    self.identity = about['identity']

  def _tip_of(self, connection: sa.Connection) -> Tip:
    row = connection.execute(
      sa.select(database.BATCHES.c.position, database.BATCHES.c.digest)
      .order_by(database.BATCHES.c.position.desc())
      .limit(1)
    ).first()
    return Tip(*row) if row else self.start

  def _errors(self) -> contextlib.AbstractContextManager[None]:
    return database.errors(self.place)


class JournalWriter(Journal):
  """A journal that is appended to, by this process alone.

  Args:
    place: a file, made if it is missing, or a URL of SQLAlchemy.

  Raises:
    JournalError: as `Journal` does, or if another process appends to it.
  """

  def __init__(self, place: str | pathlib.Path) -> None:
    self._turn = threading.Lock()
    self._held = contextlib.ExitStack()
    path = database.sqlite_path(place)
    try:
      if path is not None:
        self._create_file(path)
      super().__init__(place)
      self._tip: Tip | None = self.tip()
    except BaseException:
      self._held.close()
      raise

  def close(self) -> None:
    """Closes the connections, and lets another process append."""
    with self._turn:
      self._held.close()
    super().close()

  def serve(
    self, run: str, about: Mapping[str, Any], origin: Tip | None = None
  ) -> int:
    """Names a run that is served from this journal.

    A new journal takes any run; after that, only one that was trained on what
    this journal held at some position.

    Args:
      run: its name.
      about: JSON values that tell people which run it is.
      origin: the last batch that its log has already; None: it has none.

    Returns:
      How many batches its log has already.

    Raises:
      JournalError: if it is the journal of other runs, or cannot be written.
    """
    with self._errors(), self._engine.connect() as connection:
      is_new = not connection.scalar(
        sa.select(sa.func.count(database.RUNS.c.run))
      )
    if origin is not None:
      self.check_holds(origin)
    elif not is_new:
      return self.covers(run)

    covers = origin.position if origin else 0
    row = {'run': run, 'covers': covers, 'about': json.dumps(dict(about))}
    with self._turn, self._errors(), self._transaction() as connection:
      connection.execute(
        sa.delete(database.RUNS).where(database.RUNS.c.run == run)
      )
      connection.execute(sa.insert(database.RUNS), row)
    return covers

  def append(
    self, payload: str, after: Tip, ids: Mapping[str, bytes] | None = None
  ) -> Tip:
    """Appends a batch, which is on the disk on return.

    Args:
      payload: of the batch.
      after: the tip of the state that the batch is for. The journal may be
        ahead of it, where a commit was reported as failed and had not: then
        the state has to catch up first.
      ids: `event_digest` of its events by the ids that clients gave; none
        of them is in the journal.

    Returns:
      The batch's tip.

    Raises:
      JournalError: if it cannot be written or the state is behind; the batch
        is then not acknowledged.
    """
    new = Tip(after.position + 1, _next_digest(after, payload))
    with self._turn:
      if self._tip is None:  # the last commit's outcome is unknown
        self._tip = self._reconnect()
      if self._tip != after:
        raise JournalError(
          f'{self.place}: it is at batch {self._tip.position}, the state at '
          f'{after.position}; the state has to catch up'
        )

      self._tip = None
      try:
        with self._transaction() as connection:
          connection.execute(
            sa.insert(database.BATCHES),
            {**new._asdict(), 'payload': payload},
          )
          if ids:
            connection.execute(
              sa.insert(database.EVENT_IDS),
              [
                {'id': name, 'position': new.position, 'event_digest': digest}
                for name, digest in ids.items()
              ],
            )
      except (exc.SQLAlchemyError, OSError) as error:
        self._tip = self._reconnect()
        if self._tip != new:
          raise JournalError(
            f'{self.place}: the batch cannot be journaled '
            f'({database.words(error)}); nothing of it is kept; allowed: a '
            'journal that can be written, on a disk with room'
          ) from error
      self._tip = new
      return new

  def _create_file(self, path: pathlib.Path) -> None:
    """Takes the lock of an SQLite journal, and makes its file if need be."""
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = locks.lock_file(path.with_name(path.name + '.lock'), wait=False)
      if not self._held.enter_context(lock):
        raise self._in_use(str(path))
      path.touch()
    except OSError as error:
      raise JournalError(
        f'{path}: the journal cannot be written ({error}); allowed: a folder '
        'that can be, on a file system with locks'
      ) from error

  def _prepare(self) -> None:
    """Connects, and makes the tables of a new journal."""
    self._connect()
    with self._transaction() as connection:
      if sa.inspect(connection).has_table(database.ABOUT.name):
        return
      database.TABLES.create_all(connection)
      if connection.dialect.name == 'sqlite':
        connection.exec_driver_sql(
          f'PRAGMA application_id = {database.APPLICATION}'
        )
      about = {'version': str(_VERSION), 'identity': uuid.uuid4().hex}
      connection.execute(
        sa.insert(database.ABOUT),
        [{'name': name, 'value': value} for name, value in about.items()],
      )

  def _connect(self) -> None:
    """The one connection that writes; in PostgreSQL it holds the lock.

    All writes go through it. So whoever loses the connection, and with it the
    lock, cannot write.
    """
    self._writing = self._held.enter_context(self._engine.connect())
    if self._engine.dialect.name == 'postgresql':
      with self._writing.begin():
        held = self._writing.scalar(
          sa.text(
            "SELECT pg_try_advisory_lock(hashtext('dynllm_journal'), "
            'hashtext(current_schema()))'
          )
        )
      if not held:
        raise self._in_use(self.place)

  def _reconnect(self) -> Tip:
    """The tip after a write that failed, on a new connection."""
    with contextlib.suppress(exc.SQLAlchemyError):
      self._writing.invalidate()
      self._writing.close()
    with self._errors():
      self._connect()
      with self._writing.begin():
        return self._tip_of(self._writing)

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sa.Connection]:
    with self._writing.begin():
      yield self._writing

  def _in_use(self, place: str) -> JournalError:
    return JournalError(
      f'{place}: another process appends to the journal; allowed: one at a '
      'time, and any number that follow it'
    )


def _next_digest(after: Tip, payload: str) -> bytes:
  position = (after.position + 1).to_bytes(8)
  return hashlib.blake2b(
    after.digest + position + payload.encode(), digest_size=_DIGEST_BYTES
  ).digest()
