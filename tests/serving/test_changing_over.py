"""A server goes over to another run, and stops, and loses nothing."""

import itertools
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from dynllm_jax import Recommender
from dynllm_jax.runs.command_line import Command
from dynllm_jax.serving import opening
from tests.serving.conftest import served
from tests.testing import kept_runs
from tests.testing import live_runs
from tests.testing import ROOT


@pytest.fixture
def runs(run, tmp_path):
  """A folder with two runs on one log."""
  for name in ('one', 'two'):
    shutil.copytree(run, tmp_path / name)
  return tmp_path


def events():
  """Events that never end, a second apart."""
  for number in itertools.count(1):
    yield {
      'id': f'event {number}',
      'user': f'u{number % 24}',
      'item': f'b{number % 30}',
      'time': live_runs.START + 10**7 + number,
    }


class Load(threading.Thread):
  """Observes one event after the other, until it is stopped or cut off."""

  def __init__(self, url):
    super().__init__()
    self.url, self.taken, self.refused = url, [], []
    self.stopped = threading.Event()
    self.start()

  def run(self):
    with httpx.Client(base_url=self.url, timeout=60) as client:
      for event in events():
        if self.stopped.is_set():
          return
        try:
          answer = client.post('/events', json=event)
        except httpx.TransportError:
          return
        kept = self.taken if answer.status_code == 200 else self.refused
        kept.append(answer.json())

  def wait_for(self, count):
    while len(self.taken) < count:
      assert self.is_alive()
      time.sleep(0.01)


def test_another_run_takes_over_without_a_gap(server, runs):
  command = Command(None, str(runs / 'one'), 'serve')
  opened = opening.opened(command, True)
  with kept_runs.build_once(), served(opened, warms=False) as moved:
    moved.wait()
    client, load = moved.client, Load(moved.url)
    load.wait_for(5)
    for name in ('three', '..', 'one/../two', 'live'):
      answer = client.post('/changeover', json={'run': name})
      assert answer.status_code == 422, answer.text
    assert client.get('/health/ready').json()['run'] == 'one'

    answer = client.post('/changeover', json={'run': 'two'}, timeout=300)
    assert answer.status_code == 200, answer.text
    assert client.get('/health/ready').json()['run'] == 'two'
    load.wait_for(len(load.taken) + 5)
    load.stopped.set()
    load.join()
    assert not load.refused
    # Every event is a batch, and none is missing or there twice.
    positions = [taken['position'] for taken in load.taken]
    assert positions == list(range(1, len(positions) + 1))
    assert 0 < answer.json()['position'] < positions[-1]

    with Recommender.restore(
      str(runs / 'two'), journal=str(runs / 'one' / 'live' / 'journal.sqlite')
    ) as again:
      kept_runs.assert_equal(again, moved.app.ready.recommender)
  # At the end, the run that has the journal has a snapshot.
  assert [*(runs / 'two' / 'live').glob('snapshot-*')]


def test_a_real_sigterm(runs, capsys):
  """Under load: what was acknowledged is in the snapshot, which is all."""
  server = subprocess.Popen(
    [
      *(sys.executable, '-m', 'dynllm_jax.main', '--mode=serve', '--port=0'),
      f'--workdir={runs / "one"}',
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  try:
    for line in server.stdout:
      if found := re.search(r'listening at (\S+)', line):
        break
    while httpx.get(f'{found[1]}/health/ready').status_code != 200:
      assert server.poll() is None
      time.sleep(0.05)
    load = Load(found[1])
    load.wait_for(5)
    server.send_signal(signal.SIGTERM)
    assert server.wait(120) in (0, -signal.SIGTERM)
  finally:
    server.kill()
    server.wait()
    server.stdout.close()
  load.stopped.set()
  load.join()
  assert all('being restored' in no['error'] for no in load.refused)

  with kept_runs.build_once(), Recommender.restore(str(runs / 'one')) as shop:
    assert 'replayed' not in capsys.readouterr().out
    assert shop.position >= load.taken[-1]['position']
    (last,) = [e for e, _ in zip(events(), load.taken)][-1:]
    assert (
      shop.observe(
        {name: last[name] for name in ('user', 'item', 'time')},
        ids=[last['id']],
      ).repeats
      == 1
    )
