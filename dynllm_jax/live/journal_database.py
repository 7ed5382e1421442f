"""The database of a journal: its tables, and how its commits reach the disk.

SQLite in a file, with a write-ahead log and every commit synced, or PostgreSQL
by URL.
"""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from dynllm_jax.types import InputError

APPLICATION = 0x644C4C4A  # of an SQLite file, as `file` and others read it
_BUSY_SECONDS = 30.0

TABLES = sa.MetaData()
_POSITION = sa.BigInteger().with_variant(sa.Integer, 'sqlite')
ABOUT = sa.Table(
  'dynllm_journal',
  TABLES,
  sa.Column('name', sa.Text, primary_key=True),
  sa.Column('value', sa.Text, nullable=False),
)
RUNS = sa.Table(
  'dynllm_runs',
  TABLES,
  sa.Column('run', sa.Text, primary_key=True),
  sa.Column('covers', _POSITION, nullable=False),
  sa.Column('about', sa.Text, nullable=False),
)
BATCHES = sa.Table(
  'dynllm_batches',
  TABLES,
  sa.Column('position', _POSITION, primary_key=True, autoincrement=False),
  sa.Column('digest', sa.LargeBinary, nullable=False),
  sa.Column('payload', sa.Text, nullable=False),
)
EVENT_IDS = sa.Table(
  'dynllm_event_ids',
  TABLES,
  sa.Column('id', sa.Text, primary_key=True),
  sa.Column(
    'position', _POSITION, sa.ForeignKey(BATCHES.c.position), nullable=False
  ),
  sa.Column('event_digest', sa.LargeBinary, nullable=False),
  sqlite_with_rowid=False,
)


class JournalError(InputError):
  """The journal cannot be used; nothing of a batch was acknowledged."""


@contextlib.contextmanager
def errors(place: str) -> Iterator[None]:
  """Turns the database's errors into one of a line."""
  try:
    yield
  except ModuleNotFoundError as error:
    raise JournalError(
      f'{place}: {error.name} is not installed; allowed: '
      "pip install 'dynllm_jax[postgres]'"
    ) from error
  except (exc.SQLAlchemyError, OSError) as error:
    raise JournalError(
      f'{place}: the journal cannot be used ({words(error)}); allowed: '
      'a sound journal, on a disk with room'
    ) from error


def url(place: str | pathlib.Path) -> sa.URL:
  """The URL of a file or of a database.

  Raises:
    JournalError: if it is of another kind of database.
  """
  if '://' not in str(place):
    return sa.URL.create('sqlite', database=str(place))
  try:
    url = sa.make_url(str(place))
  except exc.ArgumentError as error:
    raise JournalError(
      'the journal: its URL cannot be read; allowed: a file, or '
      'postgresql+psycopg://USER:PASSWORD@HOST/DATABASE'
    ) from error
  if url.drivername not in ('sqlite', 'postgresql+psycopg'):
    raise JournalError(
      f'the journal: {url.drivername!r} is no supported database; allowed: a '
      'file, or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE'
    )
  return url


def _is_sqlite(url: sa.URL) -> bool:
  return url.get_backend_name() == 'sqlite'


def sqlite_path(place: str | pathlib.Path) -> pathlib.Path | None:
  """The file of an SQLite journal; None where it is a database elsewhere.

  Raises:
    JournalError: if it is of another kind of database.
  """
  at = url(place)
  return pathlib.Path(at.database or '') if _is_sqlite(at) else None


def engine(url: sa.URL) -> sa.Engine:
  """An engine whose commits are on the disk when they return."""
  if not _is_sqlite(url):
    engine = sa.create_engine(url, pool_pre_ping=True)
    sa.event.listen(engine, 'connect', _set_up_postgresql)
    return engine
  # Without a transaction mode the driver leaves transactions to the engine.
  engine = sa.create_engine(
    url,
    connect_args={
      'timeout': _BUSY_SECONDS,
      'isolation_level': None,
      'check_same_thread': False,
    },
  )
  sa.event.listen(engine, 'connect', _set_up_sqlite)
  sa.event.listen(engine, 'begin', _begin_sqlite)
  return engine


def _begin_sqlite(connection: sa.Connection) -> None:
  connection.exec_driver_sql('BEGIN')


def _set_up_sqlite(connection: Any, record: object) -> None:
  """Sets a new connection up, which stops where the file is no journal."""
  del record
  cursor = connection.cursor()
  (application,) = cursor.execute('PRAGMA application_id').fetchone()
  (tables,) = cursor.execute('SELECT count(*) FROM sqlite_master').fetchone()
  if application != APPLICATION and tables:
    raise OSError('the file is a database of something else')
  cursor.execute('PRAGMA journal_mode = WAL')
  cursor.execute('PRAGMA synchronous = FULL')
  cursor.execute('PRAGMA foreign_keys = ON')
  cursor.close()


def _set_up_postgresql(connection: Any, record: object) -> None:
  del record
  connection.execute('SET synchronous_commit = on')
  connection.commit()


def words(error: BaseException) -> str:
  """A database's error in one line, without the statement."""
  original = getattr(error, 'orig', None) or error
  return ' '.join(str(original).split()) or type(error).__name__
