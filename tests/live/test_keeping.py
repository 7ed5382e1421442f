"""Restarts, snapshots, followers and repeats: one state, bit for bit."""

import pathlib
import shutil
import threading

import pytest

from dynllm_jax import InputError
from dynllm_jax import Recommender
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journal import JournalError
from dynllm_jax.live.journal import JournalWriter
from dynllm_jax.live.journaling import entries
from tests.testing import kept_runs
from tests.testing import postgresql


@pytest.fixture(scope='module', autouse=True)
def built_once():
  with kept_runs.build_once():
    yield


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return pathlib.Path(kept_runs.make(tmp_path_factory.mktemp('live')))


@pytest.fixture
def workdir(made, tmp_path):
  """A copy of the run folder, without a journal."""
  shutil.copytree(made, tmp_path / 'run')
  return tmp_path / 'run'


def journal_of(workdir):
  return workdir / 'live' / 'journal.sqlite'


def batches_of(workdir):
  with Journal(journal_of(workdir)) as journal:
    return [batch for _, batch in entries(journal, journal.start)]


def snapshots_of(workdir):
  return sorted((workdir / 'live').glob('snapshot-*'))


def never_killed(workdir):
  """The state that applied the journal's batches, and nothing else."""
  shop = Recommender.restore(str(workdir), journal=None)
  for batch in batches_of(workdir):
    shop.apply(batch)
  return shop


def test_a_restart_is_a_snapshot_and_the_rest_of_the_journal(workdir, capsys):
  shop = Recommender.restore(str(workdir))
  assert not journal_of(workdir).exists(), 'nothing was observed'
  events = kept_runs.events(shop.newest_time)
  with shop, Recommender.restore(str(workdir)) as other:
    assert shop.snapshot() == ''
    for start in range(0, 12, 4):
      shop.observe(events[start : start + 4])
    first = shop.snapshot()
    with pytest.raises(JournalError, match='another process appends'):
      other.observe(events[:1])
    with Recommender.restore(str(workdir), follow=True) as follower:
      shop.observe(events[12:20])
      second = shop.snapshot()
      shop.observe(events[20:23])
      follower.catch_up()
      kept_runs.assert_equal(shop, follower)
      with pytest.raises(InputError, match='follows the journal'):
        follower.observe(events[:1])
  assert [str(p) for p in snapshots_of(workdir)] == [first, second]
  assert shop.position == 5

  reference = never_killed(workdir)
  kept_runs.assert_equal(reference, shop)
  for damage in range(3):
    with Recommender.restore(str(workdir)) as again:
      kept_runs.assert_equal(reference, again)
    assert ('damaged' in capsys.readouterr().out) == bool(damage)
    if damage < 2:
      path = snapshots_of(workdir)[1 - damage]
      path.write_bytes(path.read_bytes()[:-9])
  with Recommender.restore(str(workdir)) as again:
    again.observe(events[23:26])
    assert again.position == 6


def test_an_event_sent_again_counts_once(workdir):
  with Recommender.restore(str(workdir)) as shop:
    events = kept_runs.events(shop.newest_time)
    first = shop.observe(events[:2], ids=['a', ''])
    assert (first.events, first.repeats, first.position) == (2, 0, 1)
    again = shop.observe(events[:3], ids=['a', '', 'c'])
    assert (again.events, again.repeats, again.position) == (2, 1, 2)
    nothing = shop.observe(events[2:3], ids=['c'])
    assert (nothing.events, nothing.repeats, nothing.position) == (0, 1, 2)
    both = shop.observe([events[5], events[5]], ids=['d', 'd'])
    assert (both.events, both.repeats) == (1, 1)
    with pytest.raises(InputError, match=r"ids\[0\]: 'a' is the id of another"):
      shop.observe(events[3:4], ids=['a'])
    with pytest.raises(InputError, match='ids: .*one for each event, 2'):
      shop.observe(events[3:5], ids=['x'])
    assert shop.position == 3
  with Recommender.restore(str(workdir)) as shop:
    assert shop.observe(events[0], ids=['a']).repeats == 1
    assert sum(len(b.users) for b in batches_of(workdir)) == 5


def test_many_writers_share_batches(workdir):
  """Each gets what became of its own events; the journal has the boundaries."""
  with Recommender.restore(str(workdir)) as shop:
    events = kept_runs.events(shop.newest_time)
    outcomes = {}

    def observe(number):
      mine = events[number::8]
      outcomes[number] = [shop.observe(event) for event in mine]

    threads = [threading.Thread(target=observe, args=(n,)) for n in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()

  total = [one for many in outcomes.values() for one in many]
  assert sum(one.events for one in total) == len(events)
  new = {e['user'] for e in events if e['user'].startswith('new')}
  assert sum(one.new_users for one in total) == len(new)
  assert sorted((e['user'], e['item'], e['time']) for e in events) == sorted(
    row for b in batches_of(workdir) for row in zip(b.users, b.items, b.times)
  )
  kept_runs.assert_equal(never_killed(workdir), shop)


def test_a_journal_that_refuses_leaves_all_as_it_was(workdir, monkeypatch):
  with Recommender.restore(str(workdir)) as shop:
    events = kept_runs.events(shop.newest_time)
    shop.observe(events[:3])
    before = shop.saved()
    writer = shop._kept._journaling.journal
    with writer._writing.begin():
      pages = writer._writing.exec_driver_sql('PRAGMA page_count').scalar()
      writer._writing.exec_driver_sql(f'PRAGMA max_page_count = {pages}')
    with pytest.raises(JournalError, match='disk is full'):
      shop.observe([{**events[3], 'title': 'x' * 100_000}])
    assert shop.saved().record == before.record
    assert len(batches_of(workdir)) == 1
    shop.observe(events[3:6])
  kept_runs.assert_equal(never_killed(workdir), shop)


def test_a_journal_of_another_run_or_a_lost_one_is_refused(
  workdir, made, tmp_path
):
  with Recommender.restore(str(workdir)) as shop:
    shop.observe(kept_runs.events(shop.newest_time)[:3])
    shop.snapshot()
  journal_of(workdir).rename(tmp_path / 'away.sqlite')
  for path in (workdir / 'live').glob('journal*'):
    path.unlink()

  # A snapshot is ahead of a journal that began anew.
  with Recommender.restore(str(made), journal=journal_of(workdir)) as other:
    other.observe(kept_runs.events(other.newest_time)[:1])
  with pytest.raises(JournalError, match='another one than what the state'):
    Recommender.restore(str(workdir))

  other = tmp_path / 'other.sqlite'
  with JournalWriter(other) as journal:
    journal.serve('another log', {'workdir': 'runs/other'})
    journal.append('{}', journal.start)
  with pytest.raises(JournalError, match='of another run .*runs/other'):
    Recommender.restore(str(made), journal=str(other))


def test_each_journal_of_a_run_has_snapshots_of_its_own(workdir, tmp_path):
  def observe(journal, *counts):
    with Recommender.restore(str(workdir), journal=journal) as shop:
      for count in counts:
        shop.observe(kept_runs.events(shop.newest_time)[:count])
      shop.snapshot()
      return shop

  own = observe('', 3)
  trial = observe(str(tmp_path / 'trial.sqlite'), 2, 1)
  assert [own.position, trial.position] == [1, 2]
  for journal, shop in (('', own), (str(tmp_path / 'trial.sqlite'), trial)):
    with Recommender.restore(str(workdir), journal=journal) as again:
      kept_runs.assert_equal(shop, again)
      assert not again.needs_snapshot, 'it is the snapshot'
  assert len(snapshots_of(workdir)) == 2


def test_readers_of_one_postgresql_journal_agree(workdir):
  with (
    postgresql.server() as url,
    Recommender.restore(str(workdir), journal=url) as shop,
  ):
    events = kept_runs.events(shop.newest_time)
    shop.observe(events[:5])
    with (
      Recommender.restore(str(workdir), journal=url, follow=True) as one,
      Recommender.restore(str(workdir), journal=url, follow=True) as two,
    ):
      for number in range(5, 20, 5):
        shop.observe(events[number : number + 5])
      for follower in (one, two):
        follower.catch_up()
        kept_runs.assert_equal(shop, follower)
