"""Several processes on loopback: alike, resumed after a kill, one error."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.testing import commands
from tests.testing import ROOT

pytestmark = pytest.mark.slow

ARGUMENTS = [
  f'--config.{field}'
  for field in (
    'model.dim=8',
    'facets.encoder.dim=16',
    'eval.ks=(5,10)',
    'eval.compare=()',
    'mesh.start_timeout_s=120',
  )
]


def start(home, workdir, count, *args, system='mf', devices=1, own=None):
  """Starts the command in several processes.

  Args:
    home: working folder.
    workdir: run folder.
    count: processes.
    *args: of every process.
    system: config argument.
    devices: fake devices of a process.
    own: arguments of single processes, by number.
  """
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  processes = []
  for index in range(count):
    environment = {
      **commands.on_devices(devices),
      'XDG_CACHE_HOME': str(home / 'cache'),
    }
    if count > 1:
      environment.update(
        {
          'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
          'JAX_NUM_PROCESSES': str(count),
          'JAX_PROCESS_ID': str(index),
        }
      )
    processes.append(
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'dynllm_jax.main',
          f'--config={ROOT}/configs/demo.py:{system}',
          f'--workdir={workdir}',
          *ARGUMENTS,
          *args,
          *(own or {}).get(index, ()),
        ],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return processes


def finish(processes, expect=0):
  """Waits for all; their outputs and errors."""
  ends = []
  try:
    for process in processes:
      ends.append(process.communicate(timeout=600))
  finally:
    for process in processes:
      process.kill()
  for process, (_, error) in zip(processes, ends):
    assert process.returncode == expect, error[-3000:]
  return ends


def read(folder, name='results.json'):
  return json.loads((folder / name).read_text())


def history(folder):
  """What every epoch showed, without its times."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [
    {
      key: value
      for key, value in json.loads(line).items()
      if 'seconds' not in key and '_per_s' not in key
    }
    for line in lines
  ]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with a prepared log, cached for all runs."""
  folder = tmp_path_factory.mktemp('processes')
  finish(start(folder, 'none', 1, '--mode=facets'))
  return folder


def pytest_generate_tests(metafunc):
  if 'count' in metafunc.fixturenames:
    every = metafunc.config.getoption('all_combinations')
    metafunc.parametrize(
      'count, system',
      [(2, 'mf'), *([(4, 'mf'), (2, 'dynllm'), (4, 'dynllm')] * every)],
    )


def test_processes_do_what_one_does_and_survive_a_kill(home, count, system):
  name = f'{system}{count}'
  fields = ['--config.train.num_epochs=6', '--config.train.patience=6']
  if system != 'mf':
    fields = [
      '--config.train.num_epochs=4',
      '--config.model.time_dim=6',
      '--config.model.distill.top_r=5',
    ]
  mesh = f'--config.mesh.nodes={count}'
  # Two summands have one sum, four have several: of four, the same processes
  # are the ones that must agree to the last bit.
  (whole,) = finish(
    start(home, f'{name}-one', 1, *fields, mesh, system=system, devices=count)
  )
  if count > 2:
    finish(start(home, f'{name}-whole', count, *fields, mesh, system=system))
  processes = start(home, f'{name}-killed', count, *fields, mesh, system=system)
  written = home / f'{name}-killed' / 'metrics.jsonl'
  deadline = time.monotonic() + 500
  while not written.exists():
    assert time.monotonic() < deadline
    assert all(p.poll() is None for p in processes), processes[0].stderr
    time.sleep(0.02)
  processes[-1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  ends = [p.communicate(timeout=120) for p in processes]
  assert time.monotonic() - began < 100  # no hang
  assert processes[-1].returncode == -signal.SIGKILL
  for process, (_, error) in list(zip(processes, ends))[:-1]:
    assert process.returncode == 3, error[-2000:]
    assert 'start all processes again' in error
  assert not (home / f'{name}-killed' / 'results.json').exists()

  outputs = finish(
    start(home, f'{name}-killed', count, *fields, mesh, system=system)
  )
  assert 'resuming after epoch' in outputs[0][0]
  assert 'epoch' in whole[0] and 'epoch' not in outputs[1][0]  # one reports
  one, several = read(home / f'{name}-one'), read(home / f'{name}-killed')
  assert several['machine']['processes'] == count
  assert several['mesh'] == one['mesh'] == {'data': 1, 'nodes': count}
  assert several['bytes_per_device'] == one['bytes_per_device']
  losses = lambda name: [epoch['loss'] for epoch in history(home / name)]
  np.testing.assert_allclose(
    losses(f'{name}-killed'), losses(f'{name}-one'), rtol=1e-4
  )
  same = home / (f'{name}-whole' if count > 2 else f'{name}-one')
  for key in ('validation', 'test', 'best_epoch', 'epochs'):
    assert several[key] == read(same)[key], key
  assert history(home / f'{name}-killed') == history(same)


@pytest.mark.parametrize(
  'own, words',
  [
    (
      ['--config.train.learning_rate=0.5'],
      ['config.train.learning_rate', '0.5', 'the same configuration'],
    ),
    (['--config.data.dir=other'], []),
  ],
)
def test_processes_of_another_configuration_are_refused(home, own, words):
  run = ['--config.train.num_epochs=1', '--config.eval.test=False']
  processes = start(home, f'unlike{len(words)}', 2, *run, own={1: own})
  ends = finish(processes, expect=2 if words else 0)
  for word in words:
    assert word in ends[1][1]
  if words:
    assert not (home / f'unlike{len(words)}').exists()


def test_processes_of_another_log_are_refused(home):
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    rows = ['user_id,item_id,timestamp']
    for time_ in range(400):
      rows.append(f'{rng.integers(9)},{rng.integers(12)},{1e9 + time_:.0f}')
    (home / f'{name}.csv').write_text('\n'.join(rows) + '\n')
  log = lambda name: [f'--config.data.events={name}.csv']
  ends = finish(
    start(
      home,
      'logs',
      2,
      '--config.data.source=event_log',
      '--config.data.min_user_items=1',
      '--config.data.min_item_users=1',
      own={0: log('a'), 1: log('b')},
    ),
    expect=2,
  )
  for _, error in ends:
    assert 'the prepared data (config.data)' in error
  assert not (home / 'logs').exists()


@pytest.mark.parametrize(
  'variables, words',
  [
    ({'JAX_PROCESS_ID': '0'}, ['JAX_COORDINATOR_ADDRESS is not set']),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'here',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '0',
      },
      ["'here'", 'HOST:PORT'],
    ),
    (
      {
        'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9',
        'JAX_NUM_PROCESSES': 'two',
        'JAX_PROCESS_ID': '0',
      },
      ['JAX_NUM_PROCESSES', "'two'"],
    ),
    (
      {
        'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '2',
      },
      ['JAX_PROCESS_ID', '0 to'],
    ),
    # Nobody else comes.
    (
      {
        'JAX_COORDINATOR_ADDRESS': '127.0.0.1:9',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1',
      },
      ['did not meet at 127.0.0.1:9', 'within'],
    ),
  ],
)
def test_a_start_that_cannot_be_is_one_error(home, variables, words):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'dynllm_jax.main',
      f'--config={ROOT}/configs/demo.py',
      '--workdir=alone',
      '--config.mesh.start_timeout_s=3',
    ],
    cwd=home,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **variables},
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  lines = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1
  for word in words:
    assert word in lines[0]
  assert not (home / 'alone').exists()
