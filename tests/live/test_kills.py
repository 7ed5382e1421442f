"""`kill -9` under load: what was acknowledged is there once, all bits equal."""

import collections
from concurrent import futures
import pathlib
import random
import shutil
import subprocess
import sys

import pytest

from dynllm_jax import Recommender
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journaling import entries
from tests.testing import kept_runs
from tests.testing import killed_recommender
from tests.testing import ROOT


@pytest.fixture(scope='module', autouse=True)
def built_once():
  with kept_runs.build_once():
    yield


def run_and_kill(workdir, moment, count, seed):
  """Ids that a process acknowledged before it was killed at a moment."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'tests.testing.killed_recommender'),
      *(str(workdir), moment, str(count), str(seed)),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == -9, done.stderr[-3000:]
  return [line for line in done.stdout.split('\n')[:-1] if 'event ' in line]


def check(workdir, acknowledged, shop):
  """The journal has each event once, and the state is what the journal says."""
  events = kept_runs.events(kept_runs.FIRST_TIME)
  known = {(e['user'], e['item'], e['time']): n for n, e in enumerate(events)}
  reference = Recommender.restore(workdir, journal=None)
  found = collections.Counter()
  with Journal(pathlib.Path(workdir) / 'live' / 'journal.sqlite') as journal:
    for _, batch in entries(journal, journal.start):
      reference.apply(batch)
      for row in zip(batch.users, batch.items, batch.times):
        found[f'event {known[row]}'] += 1
  assert set(found.values()) <= {1}, 'an event is there twice'
  assert set(acknowledged) <= set(found), 'an acknowledged event is lost'
  kept_runs.assert_equal(reference, shop)
  return len(found)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A run with a snapshot, from which a process starts in no time.

  What it is compared with starts from the checkpoint.
  """
  workdir = kept_runs.make(tmp_path_factory.mktemp('made'))
  with Recommender.restore(workdir) as shop:
    shop.start_writing()
    assert shop.snapshot() and not shop.needs_snapshot
  return workdir


def test_nothing_is_lost_when_a_process_is_killed(made, tmp_path):
  """Killed twice in one folder; then all is sent again, and goes through."""
  workdir = str(shutil.copytree(made, tmp_path / 'run'))
  acknowledged = set()
  for seed, moment in enumerate(('after commit', 'in snapshot')):
    acknowledged |= set(run_and_kill(workdir, moment, 3, seed))
  with Recommender.restore(workdir) as shop:
    repeats = 0
    for number, event in enumerate(kept_runs.events(kept_runs.FIRST_TIME)):
      repeats += shop.observe(event, ids=[f'event {number}']).repeats
    assert len(acknowledged) <= repeats < kept_runs.NUM_EVENTS
    assert check(workdir, acknowledged, shop) == kept_runs.NUM_EVENTS


def test_every_moment(made, tmp_path, request):
  """50 moments, each in a folder of its own."""
  if not request.config.getoption('all_combinations'):
    pytest.skip('with --all-combinations')
  draw = random.Random(1)
  moments = killed_recommender.MOMENTS
  counts = [draw.randint(1, 6) for _ in range(50)]
  folders = [tmp_path / f'run {seed}' for seed in range(50)]

  def kill(seed):
    workdir = str(shutil.copytree(made, folders[seed]))
    moment = moments[seed % len(moments)]
    return run_and_kill(workdir, moment, counts[seed], seed)

  with futures.ThreadPoolExecutor(2) as threads:
    for folder, killed in zip(folders, threads.map(kill, range(50))):
      with Recommender.restore(str(folder)) as shop:
        check(str(folder), killed, shop)
