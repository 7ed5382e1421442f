"""The journal alone: nothing acknowledged is lost, nothing is there twice."""

import pathlib
import shutil
import tempfile

import hypothesis
from hypothesis import stateful
from hypothesis import strategies as st
import pytest
import sqlalchemy as sa

from dynllm_jax.live import journal as journal_lib
from dynllm_jax.live import journal_database
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journal import JournalError
from dynllm_jax.live.journal import JournalWriter
from tests.testing import postgresql


def payloads(journal, after=None):
  return [e.payload for e in journal.read(after or journal.start)]


class Crashes(stateful.RuleBasedStateMachine):
  """Appends, refused commits, kills and restarts against a list.

  A kill is what it is for the disk: the files as they are at that moment, and
  nobody who tidies up.
  """

  def __init__(self):
    super().__init__()
    self.folder = pathlib.Path(tempfile.mkdtemp())
    self.writer = JournalWriter(self.place)
    self.tip = self.writer.start
    self.kept, self.ids = [], {}

  @property
  def place(self):
    return self.folder / 'journal.sqlite'

  @stateful.rule(
    payload=st.text(max_size=30), new_ids=st.sets(st.integers(0, 99))
  )
  def append(self, payload, new_ids):
    ids = {
      str(i): journal_lib.event_digest(payload, i)
      for i in new_ids
      if str(i) not in self.ids
    }
    self.tip = self.writer.append(payload, self.tip, ids)
    self.kept.append(payload)
    self.ids |= ids

  @stateful.rule()
  def refuse_a_commit(self):
    """The disk is full at the last moment: nothing of it stays."""

    def full(connection):
      raise OSError(28, 'No space left on device')

    sa.event.listen(self.writer._engine, 'commit', full, once=True)
    with pytest.raises(JournalError, match='No space left'):
      self.writer.append('lost', self.tip, {'lost': b'content'})

  @stateful.rule()
  def kill_in_a_transaction(self):
    """The files of a moment before the commit, with pages of it among them."""
    new = self.folder / 'killed'
    with self.writer._writing.begin() as transaction:
      self.writer._writing.execute(
        sa.insert(journal_database.BATCHES),
        {
          'position': self.tip.position + 1,
          'digest': b'x',
          'payload': 'x' * 9_000,
        },
      )
      self._copy(new)
      transaction.rollback()
    self._move(new)

  @stateful.rule()
  def kill(self):
    new = self.folder / 'killed'
    self._copy(new)
    self._move(new)

  @stateful.rule()
  def restart(self):
    self.writer.close()
    self.writer = JournalWriter(self.place)

  def _copy(self, new):
    new.mkdir()
    for name in ('journal.sqlite', 'journal.sqlite-wal'):
      if (self.folder / name).exists():
        shutil.copy(self.folder / name, new / name)

  def _move(self, new):
    self.writer.close()
    for path in self.folder.glob('journal*'):
      path.unlink()
    for path in new.iterdir():
      path.rename(self.folder / path.name)
    new.rmdir()
    self.writer = JournalWriter(self.place)

  @stateful.invariant()
  def all_is_there_once(self):
    assert self.writer.tip() == self.tip
    with Journal(self.place) as reader:
      assert payloads(reader) == self.kept
      assert reader.event_digests([*self.ids, 'lost']) == self.ids

  def teardown(self):
    self.writer.close()
    shutil.rmtree(self.folder)


TestCrashes = Crashes.TestCase
TestCrashes.settings = hypothesis.settings(
  max_examples=15, stateful_step_count=12, deadline=None
)


@pytest.fixture
def place(tmp_path):
  return tmp_path / 'live' / 'journal.sqlite'


@pytest.fixture
def writer(place):
  with JournalWriter(place) as writer:
    yield writer


def append(writer, *names):
  tip = writer.tip()
  for name in names:
    tip = writer.append(name, tip)
  return tip


def test_one_process_appends(writer, place):
  with pytest.raises(JournalError, match='another process appends'):
    JournalWriter(place)
  writer.close()
  JournalWriter(place).close()


def test_a_journal_is_there_once_it_has_its_tables(place):
  assert not journal_lib.exists(place)
  place.parent.mkdir()
  engine = journal_database.engine(sa.make_url(f'sqlite:///{place}'))
  with engine.connect() as connection:
    connection.exec_driver_sql('SELECT 1')
  assert place.stat().st_size and not journal_lib.exists(place)
  JournalWriter(place).close()
  assert journal_lib.exists(place)


def test_a_reader_follows(writer, place):
  with Journal(place) as reader:
    first = append(writer, 'a', 'b')
    assert payloads(reader) == ['a', 'b']
    append(writer, *map(str, range(600)))
    assert payloads(reader, first) == [str(i) for i in range(600)]


def test_a_commit_that_was_made_after_all_is_found(writer):
  """Its answer was lost: the batch counts, since readers may have it."""

  def lose_the_answer(connection):
    connection.connection.dbapi_connection.commit()
    raise OSError('connection lost')

  sa.event.listen(writer._engine, 'commit', lose_the_answer, once=True)
  tip = writer.append('a', writer.start)
  assert (payloads(writer), writer.tip()) == (['a'], tip)


def test_a_state_that_is_behind_may_not_append(writer):
  append(writer, 'a')
  with pytest.raises(JournalError, match='has to catch up'):
    writer.append('b', writer.start)


def test_an_id_is_journaled_once(writer):
  tip = writer.append('a', writer.start, {'x': b'1'})
  with pytest.raises(JournalError, match='cannot be journaled'):
    writer.append('b', tip, {'y': b'2', 'x': b'1'})
  assert payloads(writer) == ['a']
  assert writer.event_digests(['x', 'y']) == {'x': b'1'}


def test_a_full_disk_refuses_the_batch(writer):
  tip = append(writer, 'a')
  # A limit that the connection has, and the one that follows it does not.
  with writer._writing.begin():
    pages = writer._writing.exec_driver_sql('PRAGMA page_count').scalar()
    writer._writing.exec_driver_sql(f'PRAGMA max_page_count = {pages}')
  with pytest.raises(JournalError, match='disk is full'):
    writer.append('b' * 100_000, tip)
  assert payloads(writer) == ['a']
  writer.append('b' * 100_000, tip)
  assert len(payloads(writer)) == 2


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ("UPDATE dynllm_batches SET payload = 'z' WHERE position = 2", 'batch 2'),
    ('DELETE FROM dynllm_batches WHERE position = 2', 'batch 2 is missing'),
    ("UPDATE dynllm_journal SET value = '99' WHERE name = 'version'", '99'),
    ('DROP TABLE dynllm_batches', 'no such table'),
  ],
)
def test_a_journal_that_was_changed_is_refused(writer, place, change, words):
  append(writer, 'a', 'b', 'c')
  with writer._writing.begin():
    writer._writing.exec_driver_sql(change)
  with pytest.raises(JournalError, match=words) as error:
    payloads(Journal(place))
  assert '\n' not in str(error.value)


def test_files_that_are_no_journal_are_refused(tmp_path, place):
  with pytest.raises(JournalError, match='there is no journal'):
    Journal(place)
  text = tmp_path / 'text'
  text.write_text('user,item\n' * 500)
  with pytest.raises(JournalError, match='file is not a database'):
    JournalWriter(text)
  other = tmp_path / 'other.sqlite'
  engine = sa.create_engine(f'sqlite:///{other}')
  with engine.begin() as connection:
    connection.exec_driver_sql('CREATE TABLE shop (x)')
  content = other.read_bytes()
  for kind in (Journal, JournalWriter):
    with pytest.raises(JournalError, match='something else'):
      kind(other)
  assert other.read_bytes() == content
  with pytest.raises(JournalError, match="'mysql' is no supported"):
    Journal('mysql://shop:secret@host/db')


def test_a_damaged_file_is_one_error(writer, place):
  append(writer, *('x' * 3_000 for _ in range(50)))
  writer.close()
  content = bytearray(place.read_bytes())
  content[20_000:90_000] = b'\xff' * 70_000
  place.write_bytes(content)
  with pytest.raises(JournalError, match='malformed|not as it was'):
    payloads(Journal(place))


def test_another_journal_than_the_states_is_refused(tmp_path, writer, place):
  tip = append(writer, 'a', 'b')
  for path in (place, place.with_name(place.name + '-wal')):
    shutil.copy(path, tmp_path / path.name)
  with JournalWriter(tmp_path / place.name) as other:
    assert other.tip() == tip
    fork = append(other, 'c')
  with pytest.raises(JournalError, match='it has no batch 3'):
    payloads(writer, fork)
  append(writer, 'd')
  with pytest.raises(JournalError, match='its batch 3 is another one'):
    payloads(writer, fork)


def test_a_journal_serves_the_runs_that_went_on_from_it(writer, place):
  about = {'workdir': 'runs/a', 'log': 'fa'}
  assert writer.serve('a', about) == 0
  tip = append(writer, '1', '2')
  with pytest.raises(JournalError, match='another run .*runs/a'):
    writer.serve('b', {})
  with pytest.raises(JournalError, match='it has no batch 7'):
    writer.serve('b', {}, journal_lib.Tip(7, b''))
  assert writer.serve('b', {}, tip) == 2
  assert writer.serve('a', about) == 0
  with Journal(place) as reader:
    assert (reader.covers('a'), reader.covers('b')) == (0, 2)


def test_postgresql_keeps_the_same_rules():
  """One writer, any reader, a lost connection, an id that is there already."""
  with postgresql.server() as url, JournalWriter(url) as writer:
    first = append(writer, 'a', 'ü "\\')
    with pytest.raises(JournalError, match='another process appends'):
      JournalWriter(url)
    with pytest.raises(JournalError, match='cannot be journaled'):
      writer.append('x' * 10, first, {'id': b'1', 'bad\0': b'2'})

    # The server drops the connection, and with it the writer's lock.
    with Journal(url) as reader, reader._engine.begin() as connection:
      connection.exec_driver_sql(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
        'WHERE pid != pg_backend_pid() AND backend_type = %s',
        ('client backend',),
      )
    with pytest.raises(JournalError, match='cannot be journaled'):
      writer.append('refused', first)
    tip = writer.append('b', first, {'id': b'1'})
    with Journal(url) as reader:
      assert payloads(reader) == ['a', 'ü "\\', 'b']
      assert reader.event_digests(['id']) == {'id': b'1'}
      assert reader.tip() == tip
    writer.close()
    with JournalWriter(url) as after:
      assert after.tip() == tip
