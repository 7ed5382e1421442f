"""Runs, prepared data and embeddings in a bucket, with a local emulator."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from dynllm_jax.storage import bucket
from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage import bucket_sync
from dynllm_jax.storage import fill_lock
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError
from tests.testing import ROOT
from tests.testing.fake_bucket import FakeBucket

ARGUMENTS = [
  f'--config.{field}'
  for field in (
    'model.dim=8',
    'facets.encoder.dim=16',
    'eval.ks=(5,10)',
    'eval.compare=()',
    'train.num_epochs=3',
  )
]


@pytest.fixture(scope='module')
def fake():
  """The emulator, which this process uses."""
  running = FakeBucket()
  patch = pytest.MonkeyPatch()
  for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
    patch.setenv(name, running.url)
  yield running
  patch.undo()
  running.close()


@pytest.fixture
def environment(fake):
  """Variables of processes that are to use the emulator."""
  del fake
  return dict(os.environ)


@pytest.fixture
def machine(environment, tmp_path, monkeypatch):
  """A function that gives this process the disk of a fresh machine."""
  del environment

  def fresh(name):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))

  fresh('first')
  return fresh


def start(environment, home, workdir, *args, mode='train'):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'dynllm_jax.main',
      f'--mode={mode}',
      f'--config={ROOT}/configs/demo.py:mf',
      f'--workdir={workdir}',
      *ARGUMENTS,
      *args,
    ],
    cwd=home,
    env={
      **environment,
      'XDG_CACHE_HOME': str(home / 'cache'),
      'JAX_PLATFORMS': 'cpu',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process, expect=0):
  out, error = process.communicate(timeout=300)
  assert process.returncode == expect, error[-3000:]
  return out, error


def figures(folder):
  results = json.loads((folder / 'results.json').read_text())
  return results['validation'], results['test']


@pytest.mark.slow
def test_a_run_in_a_bucket_survives_its_machine(environment, tmp_path):
  data = '--config.data.dir=gs://shop/data'
  homes = [tmp_path / name for name in ('disk', 'lost', 'next', 'laptop')]
  for home in homes:
    home.mkdir()
  finish(start(environment, homes[0], 'run'))
  url = 'gs://shop/runs/mf'
  folder = bucket.open_path('--workdir', url)
  lost = start(environment, homes[1], url, data)
  try:
    deadline = time.monotonic() + 120
    while not (folder / 'metrics.jsonl').exists():
      assert lost.poll() is None and time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
  # Another machine, with an empty disk.
  out, _ = finish(start(environment, homes[2], url, data))
  assert 'resuming after epoch' in out
  assert 'data: loaded from' in out
  assert figures(folder) == figures(homes[0] / 'run')
  assert [
    json.loads(line)['epoch']
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ] == [1, 2, 3]
  assert list((folder / 'tensorboard').glob('events.*'))
  (folder / 'results.json').unlink()
  finish(start(environment, homes[3], url, data, mode='evaluate'))
  assert figures(folder) == figures(homes[0] / 'run')
  assert not (homes[3] / 'gs:').exists()


@pytest.mark.slow
def test_two_hosts_share_a_bucket_alone(environment, tmp_path):
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  url = 'gs://shop/runs/two'
  hosts = []
  for index in range(2):
    home = tmp_path / f'host{index}'
    home.mkdir()
    hosts.append(
      start(
        {
          **environment,
          'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
          'JAX_NUM_PROCESSES': '2',
          'JAX_PROCESS_ID': str(index),
        },
        home,
        url,
        '--config.data.dir=gs://shop/two',
        '--config.mesh.nodes=2',
      )
    )
  ends = [host.communicate(timeout=300) for host in hosts]
  assert [host.returncode for host in hosts] == [0, 0], ends
  laptop = tmp_path / 'laptop'
  laptop.mkdir()
  folder = bucket.open_path('--workdir', url)
  found = figures(folder)
  (folder / 'results.json').unlink()
  finish(start(environment, laptop, url, mode='evaluate'))
  assert figures(folder) == found


@pytest.mark.slow
def test_an_event_log_in_a_bucket(machine):
  url = 'gs://shop/logs/events.csv'
  source = bucket.open_path('config.data.events', url)
  source.write_text('user_id,item_id\n')
  path = bucket_copy.fetch_file('config.data.events', url)
  assert pathlib.Path(path).name == 'events.csv'
  assert pathlib.Path(path).read_text() == 'user_id,item_id\n'
  assert bucket_copy.fetch_file('config.data.events', url) == path
  source.write_text('user_id,item_id\n1,2\n')
  assert (
    pathlib.Path(bucket_copy.fetch_file('config.data.events', url))
    .read_text()
    .endswith('1,2\n')
  )
  with pytest.raises(
    InputError, match='config.data.events: gs://shop/none.csv does not exist'
  ):
    bucket_copy.fetch_file('config.data.events', 'gs://shop/none.csv')


def test_a_folder_is_there_once_its_marker_is(machine):
  place = lambda: (
    bucket.local_path('config.data.dir', 'gs://shop/kept/') / 'facets' / 'a'
  )
  assert not bucket_copy.fetch_folder(place())
  place().mkdir(parents=True)
  (place() / 'texts.npy').write_bytes(b'\0' * 1000)
  (place() / 'about.json').write_text('{}')
  (place() / '.about.jsonx').write_text('{')  # of a killed writer
  bucket_copy.publish_folder(place())
  machine('second')
  marker = bucket.origin(place()) / 'COMMITTED'
  content = marker.read_text()
  marker.unlink()
  assert not bucket_copy.fetch_folder(place())
  assert not place().exists()
  marker.write_text(content)
  assert bucket_copy.fetch_folder(place())
  assert sorted(p.name for p in place().iterdir()) == [
    'about.json',
    'texts.npy',
  ]
  machine('third')
  (marker.parent / 'about.json').unlink()
  with pytest.raises(InputError, match='COMMITTED names about.json, which'):
    bucket_copy.fetch_folder(place())
  assert not place().exists()
  machine('second')
  # A machine that stopped between building and copying copies later.
  marker.unlink()
  assert bucket_copy.fetch_folder(place())
  assert marker.exists()


def test_what_others_write_is_seen(machine, fake):
  folder = bucket.open_path('config.data.dir', 'gs://shop/busy')
  (folder / 'mine').write_text('')
  names = lambda: sorted(path.name for path in folder.iterdir())
  assert names() == ['mine']
  fake.objects['busy/theirs'] = fake.objects['busy/mine']
  assert names() == ['mine', 'theirs']


def keys(count, first=0):
  return [i.to_bytes(16, 'little') for i in range(first, first + count)]


def test_stores_of_two_machines_become_one(machine, monkeypatch):
  def open_store():
    return Store(
      bucket.local_path('config.data.dir', 'gs://shop/two') / 'encoded' / 'x',
      {'model': 'x'},
    )

  one = open_store()
  with fill_lock.hold(one, print):
    one.append(keys(3), [b'a', b'', b'ccc'])
  machine('second')
  two = open_store()
  with fill_lock.hold(two, print):
    assert [two.read(row) for row in two.find(keys(3))] == [b'a', b'', b'ccc']
    two.append(keys(2, first=3), [b'd', b'e'])
  machine('first')
  monkeypatch.setattr(bucket_sync, 'SYNC_SECONDS', 0.0)
  one = open_store()
  with fill_lock.hold(one, print):
    assert one.read(one.find(keys(1, first=4))[0]) == b'e'
    one.append(keys(1, first=9), [b'z'])
    # It is in the bucket before the turn ends.
    machine('third')
    three = open_store()
    with fill_lock.hold(three, print):
      assert three.find(keys(10)).tolist().count(-1) == 4
      assert three.read(three.find(keys(1, first=9))[0]) == b'z'
  segments = list(bucket.origin(one.folder).glob('*.npz'))
  assert len(segments) == 3
  with fill_lock.hold(one, print):
    pass
  assert len(list(bucket.origin(one.folder).glob('*.npz'))) == 3
  content = bytearray(segments[0].read_bytes())
  content[len(content) // 2] ^= 1
  segments[0].write_bytes(bytes(content))
  machine('fourth')
  with pytest.raises(InputError, match='not as it was written'):
    with fill_lock.hold(open_store(), print):
      pass


def test_what_is_wrong_with_a_bucket_is_said(machine, monkeypatch):
  with pytest.raises(
    InputError,
    match=r"--workdir: 's3://shop/x' is not "
    r'allowed; allowed: a local path or gs://BUCKET/FOLDER',
  ):
    bucket.open_path('--workdir', 's3://shop/x')
  nowhere = bucket.open_path('--workdir', 'gs://nobodys/x')
  with pytest.raises(
    InputError, match='--workdir: gs://nobodys/x cannot be used'
  ):
    bucket.check_writable('--workdir', nowhere)
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(InputError, match='needs gcsfs; pip install'):
    bucket.open_path('config.data.dir', 'gs://shop/x')
