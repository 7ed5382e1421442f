"""The command, killed at random moments of a precompute, and run again.

`--all-combinations` kills twenty times, else a few times. A store must end as
that of a run that nobody killed, and no call be made again but those in
flight.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from tests.testing import facet_answers
from tests.testing import fake_endpoint
from tests.testing import ROOT
from tests.testing import tiny_models

pytestmark = pytest.mark.slow

USERS, WINDOWS, ITEMS = 6, 10, 240  # a prompt of its own a user and window
CONCURRENCY, DIM, BATCH = 3, 8, 4

# The command with what a model is asked written to a file, a line a call,
# before it computes, and slow enough to be killed in between.
_TOLD = """
import json, os, runpy, sys, time
from dynllm_jax.facets import batched_generation, prompts
from dynllm_jax.storage import store
from dynllm_jax.text.encoders import flax_encoder
prompts.SYSTEM = 'say json'  # of these models every letter is a token
flax_encoder._WAIT_SECONDS = 0.1
file = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def tell(*call):
  os.write(file, (json.dumps(call) + '\\n').encode())
  time.sleep(0.03)
generate, vectors = batched_generation.Generator.__call__, flax_encoder.vectors
def told_generate(self, prompts, temperatures, seeds):
  tell('write', [int(seed) for seed in seeds])
  return generate(self, prompts, temperatures, seeds)
def told_vectors(config, texts):
  tell('encode', [store.digest(text).hex() for text in texts])
  for batch in vectors(config, texts):
    tell('encode', [])
    yield batch
batched_generation.Generator.__call__ = told_generate
flax_encoder.vectors = told_vectors
runpy.run_module('dynllm_jax.main', run_name='__main__')
"""


@pytest.fixture(name='num_kills')
def fixture_num_kills(request):
  if request.config.getoption('--all-combinations'):
    return 20
  # A model of its own takes a process long to load.
  return 1 if 'models' in request.node.name else 3


@pytest.fixture(name='log', scope='module')
def fixture_log(tmp_path_factory):
  """Flags of a log; its titles are long, so that few of them are a call."""
  folder = tmp_path_factory.mktemp('log')
  with open(folder / 'events.csv', 'w', newline='', encoding='utf-8') as file:
    rows = csv.writer(file)
    rows.writerow(['user_id', 'item_id', 'timestamp'])
    events = facet_answers.many(USERS, WINDOWS)
    rows.writerows(
      (f'u{user}', f'i{k % ITEMS}', 1_600_000_000 + seconds)
      for k, (user, _, seconds) in enumerate(
        sorted(events, key=lambda event: event[2])
      )
    )
    # Every item has been bought, in a window with prompts already.
    rows.writerows(
      (
        f'u{USERS}',
        f'i{k}',
        1_600_000_000 + 9 * facet_answers.WINDOW + 7 * facet_answers.DAY + k,
      )
      for k in range(ITEMS)
    )
  with open(folder / 'items.csv', 'w', newline='', encoding='utf-8') as file:
    rows = csv.writer(file)
    rows.writerow(['item_id', 'title'])
    rows.writerows(
      (f'i{k}', f'item {k} ' + 'rose ' * 2500) for k in range(ITEMS)
    )
  return [
    f'--config={ROOT}/configs/event_log.py:dynllm',
    '--mode=facets',
    f'--config.data.events={folder}/events.csv',
    f'--config.data.items={folder}/items.csv',
    '--config.data.min_user_items=1',
    '--config.data.min_item_users=1',
    '--config.facets.window_days=10.0',
  ]


def start(code, arguments):
  return subprocess.Popen(
    [sys.executable, *code, *arguments],
    cwd=ROOT,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'OPENAI_API_KEY': 'x'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def finish(code, arguments):
  process = start(code, arguments)
  out, _ = process.communicate(timeout=600)
  assert not process.returncode, out[-3000:]


def kill_at_random(code, arguments, calls, num_kills, most, at_kill):
  """Kills, `num_kills` times, after up to `most` calls and a random wait.

  Args:
    code, arguments: of `start`.
    calls: the number of calls so far.
    num_kills, most: how often, and after how many calls more.
    at_kill: called with the process dead, and may look around.

  Returns:
    How often it was killed before it had finished.
  """
  draw = random.Random(num_kills)
  for kills in range(num_kills):
    process = start(code, arguments)
    more = draw.randint(0, most)
    until = calls() + more
    while calls() < until and process.poll() is None:
      time.sleep(0.001)
    # Some in the middle of reading the log or of loading a model.
    time.sleep(draw.uniform(0, 0.06 if more else 2.0))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    if process.returncode != -signal.SIGKILL:
      assert not process.returncode, out[-3000:]
      return kills
    at_kill()
  return num_kills


def stores(folder):
  """What every store in a folder holds, by the folder's name."""
  found = {}
  for about in folder.glob('*/*/about.json'):
    if not (about.parent / 'index.bin').exists():
      continue  # a finished bank
    store = Store(about.parent, json.loads(about.read_text()))
    found[about.parent.name] = {
      key: store.read(row) for row, key in enumerate(store.keys(0))
    }
    assert len(found[about.parent.name]) == len(store)
  return found


def check_equal(killed, whole):
  """Stores, row by row, and the finished arrays, byte by byte."""
  assert stores(killed) == stores(whole) and len(stores(whole)) == 2
  for half in store_files(whole):
    assert (killed / half).stat().st_size == (whole / half).stat().st_size
  arrays = [path.relative_to(whole) for path in whole.glob('*/*/*.npy')]
  assert len(arrays) == 5
  for path in arrays:
    np.testing.assert_array_equal(np.load(killed / path), np.load(whole / path))


def store_files(folder):
  """Both files of each store: none has half a row at its end."""
  return [path.relative_to(folder) for path in folder.glob('*/*/*.bin')]


def answer(body, number):
  """As an endpoint of both kinds, slow enough to be killed in between."""
  del number
  time.sleep(0.03)
  if 'messages' in body:
    text = facet_answers.good(body['messages'][1]['content'])
    return 200, fake_endpoint.completion(text)
  vectors = [[b / 255 for b in digest(text)[:DIM]] for text in body['input']]
  return 200, fake_endpoint.embeddings(vectors)


def test_endpoints(log, num_kills, tmp_path):
  """Both the writer and the encoder ask a server, which counts."""
  code = ['-m', 'dynllm_jax.main']

  def arguments(server, name):
    return [
      *log,
      f'--config.data.dir={tmp_path / name}',
      *(
        f'--config.facets.{part}.{field}={value}'
        for part in ('writer', 'encoder')
        for field, value in (
          ('name', 'openai'),
          ('model', 'm'),
          ('base_url', server.url),
          ('concurrency', CONCURRENCY),
        )
      ),
    ]

  with fake_endpoint.serve(answer) as server:
    finish(code, arguments(server, 'whole'))
    whole = asked(server)
  done = set()
  with fake_endpoint.serve(answer) as server:

    def at_kill():
      check()
      done.update(*map(set, stores(tmp_path / 'killed').values()))

    def check():  # that what was on the disk was not asked for again
      new = server.calls[check.calls :]
      assert not done & {
        digest(text) for body in new for text in body.get('input', ())
      }
      check.calls += len(new)

    check.calls = 0
    kills = kill_at_random(
      code,
      arguments(server, 'killed'),
      lambda: len(server.calls),
      num_kills,
      len(whole) // num_kills,
      at_kill,
    )
    assert kills == num_kills, 'it finished before all kills'
    finish(code, arguments(server, 'killed'))
    check()
    calls = asked(server)
  assert {text for call in calls for text in call} == {
    text for call in whole for text in call
  }
  # What a kill leaves unanswered is a call or two of its own afterwards.
  assert len(calls) <= len(whole) + (CONCURRENCY + 1) * kills
  prompts = [call for call in calls if call[0].startswith('Purchases')]
  assert len(set(prompts)) == USERS * WINDOWS
  assert len(prompts) <= USERS * WINDOWS + CONCURRENCY * kills
  check_equal(tmp_path / 'killed', tmp_path / 'whole')


def asked(server):
  """What was asked for by each call."""
  return [
    tuple(body['input'])
    if 'input' in body
    else (body['messages'][1]['content'],)
    for body in server.calls
  ]


def test_models_run_here(log, num_kills, tmp_path):
  """Random weights write no JSON; every answer is kept all the same."""
  tiny_models.save(tmp_path / 'gpt2', 'gpt2', n_positions=256)
  tiny_models.save(tmp_path / 'bert')

  def told(name):
    return ['-c', _TOLD, str(tmp_path / f'{name}.calls')], [
      *log,
      f'--config.data.dir={tmp_path / name}',
      *(
        f'--config.facets.writer.{field}={value}'
        for field, value in (
          ('name', 'flax'),
          ('model', tmp_path / 'gpt2'),
          ('max_input_tokens', 250),
          ('max_output_tokens', 6),
          ('batch_size', BATCH),
          ('max_attempts', 2),
          ('max_failure_rate', 1.0),
        )
      ),
      *(
        f'--config.facets.encoder.{field}={value}'
        for field, value in (
          ('name', 'flax'),
          ('model', tmp_path / 'bert'),
          ('batch_tokens', 80),
        )
      ),
    ]

  def calls(name):
    path = tmp_path / f'{name}.calls'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def count():
    path = tmp_path / 'killed.calls'
    return path.read_bytes().count(b'\n') if path.exists() else 0

  finish(*told('whole'))
  whole, done = calls('whole'), set()

  def at_kill():
    check()
    done.update(*map(set, stores(tmp_path / 'killed').values()))

  def check():
    new = calls('killed')[check.calls :]
    assert not done & {
      bytes.fromhex(key)
      for kind, keys in new
      if kind == 'encode'
      for key in keys
    }
    check.calls += len(new)

  check.calls = 0
  kills = kill_at_random(
    *told('killed'), count, num_kills, len(whole) // num_kills, at_kill
  )
  assert kills == num_kills, 'it finished before all kills'
  finish(*told('killed'))
  check()
  written = [
    seed for kind, seeds in calls('killed') if kind == 'write' for seed in seeds
  ]
  assert len(set(written)) == 2 * USERS * WINDOWS
  assert len(written) <= len(set(written)) + BATCH * kills
  check_equal(tmp_path / 'killed', tmp_path / 'whole')
