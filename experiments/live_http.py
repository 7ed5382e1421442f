"""What a server does under load: python -m experiments.live_http RUN_FOLDER

Clients observe and ask one to one, each the next thing when it has its answer,
on the machine of the server. A line says: requests and errors, how many a
second, the time to an answer of each kind, how memory grew, and how many
programs were compiled after the server was warm.
"""

import argparse
import asyncio
from collections.abc import Iterator
import contextlib
import itertools
import logging
import os
import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import httpx
import numpy as np


class Load(NamedTuple):
  """What was measured.

  Attributes:
    seconds: how long, after the server was ready.
    reads, writes: f64[requests] seconds to the answer.
    errors: statuses and words of requests that failed.
    memory: MiB of the server, at ten times.
    compiled: programs, after it was warm.
    ready: seconds from the command to the first answer.
    warm: seconds from the command until nothing was left to compile.
  """

  seconds: float
  reads: np.ndarray
  writes: np.ndarray
  errors: list[str]
  memory: list[float]
  compiled: int
  ready: float
  warm: float


def measure(run: str, clients: int, seconds: float) -> Load:
  """Starts a server of a run, and puts it under load.

  Args:
    run: the folder; the journal is kept elsewhere.
    clients: how many ask at once.
    seconds: for how long.
  """
  with tempfile.TemporaryDirectory() as folder:
    with serving(run, folder) as server:
      url, pid, ready, warm = server
      load = asyncio.run(_load(url, pid, clients, seconds))
  return load._replace(ready=ready, warm=warm)


@contextlib.contextmanager
def serving(run: str, folder: str) -> Iterator[tuple[str, int, float, float]]:
  """A server of a run, which has answered and is warm.

  Args:
    run: the folder.
    folder: for its journal and what it says.

  Yields:
    Its address and process; seconds from the command to the first answer, and
    until it was warm.
  """
  # absl would have it say every request.
  logging.getLogger('httpx').setLevel(logging.WARNING)
  log = pathlib.Path(folder) / 'log'
  began = time.perf_counter()
  with open(log, 'w', encoding='utf-8') as output:
    server = subprocess.Popen(
      [
        *(sys.executable, '-m', 'dynllm_jax.main', '--mode=serve'),
        *(f'--workdir={run}', '--port=0', f'--journal={folder}/journal'),
      ],
      stdout=output,
      stderr=subprocess.STDOUT,
    )
  try:
    url = _address(log, server)
    with httpx.Client(base_url=url, timeout=600) as client:
      while client.get('/recommendations/somebody').status_code != 200:
        _check_runs(server, log)
        time.sleep(0.05)
      ready = time.perf_counter() - began
      while not client.get('/health/ready').json()['warm']:
        _check_runs(server, log)
        time.sleep(0.2)
    yield url, server.pid, ready, time.perf_counter() - began
    _check_runs(server, log)
  finally:
    server.terminate()
    server.wait()


async def _load(url: str, pid: int, clients: int, seconds: float) -> Load:
  """The load itself, of a server that is warm."""
  limits = httpx.Limits(max_connections=clients + 1)
  async with httpx.AsyncClient(
    base_url=url, timeout=60, limits=limits
  ) as client:
    users = await _ids(client, '/users', 'begin')
    items = await _ids(client, '/items', 'text')
    before = await _compiled(client)
    times: dict[str, list[float]] = {'read': [], 'write': []}
    errors: list[str] = []
    memory: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
      draw = random.Random(number)
      kinds = itertools.cycle(('read', 'write'))
      while time.perf_counter() < end:
        kind = next(kinds)
        user = draw.choice(users)
        event = {
          'user': user,
          'item': draw.choice(items),
          'time': int(time.time()),
        }
        began = time.perf_counter()
        try:
          answer = await (
            client.get(f'/recommendations/{user}')
            if kind == 'read'
            else client.post('/events', json=event)
          )
        except httpx.HTTPError as error:
          errors.append(f'{kind}: {type(error).__name__} {error}')
          continue
        times[kind].append(time.perf_counter() - began)
        if answer.status_code != 200:
          errors.append(f'{kind}: {answer.status_code} {answer.text}')

    async def watch() -> None:
      while time.perf_counter() < end:
        memory.append(_memory(pid))
        await asyncio.sleep(seconds / 10)

    await asyncio.gather(watch(), *map(one, range(clients)))
    return Load(
      seconds,
      np.array(times['read']),
      np.array(times['write']),
      errors,
      memory,
      await _compiled(client) - before,
      ready=0.0,
      warm=0.0,
    )


def _address(log: pathlib.Path, server: subprocess.Popen) -> str:
  """Where the server says that it listens."""
  while server.poll() is None:
    if found := re.search(r'listening at (\S+)', log.read_text()):
      return found[1]
    time.sleep(0.05)
  raise RuntimeError(log.read_text())


def _check_runs(server: subprocess.Popen, log: pathlib.Path) -> None:
  """Stops where the server has ended."""
  if server.poll() is not None:
    raise RuntimeError(log.read_text())


async def _ids(client: httpx.AsyncClient, path: str, name: str) -> list[str]:
  """Some hundreds of ids; the server lists twenty that begin with a text."""
  found = (await client.get(path)).json()['ids']
  begin = os.path.commonprefix(found)
  for pair in itertools.product(string.digits, repeat=2):
    asked = {name: begin + ''.join(pair)}
    found += (await client.get(path, params=asked)).json()['ids']
  return sorted(set(found))


async def _compiled(client: httpx.AsyncClient) -> int:
  text = (await client.get('/metrics')).text
  found = re.search(
    r'^dynllm_programs_compiled_total (\S+)', text, re.MULTILINE
  )
  return int(float(found[1])) if found else 0


def _memory(pid: int) -> float:
  """MiB of a process."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  found = re.search(r'VmRSS:\s+(\d+) kB', status)
  return int(found[1]) / 1024 if found else 0.0


def _percentiles(seconds: np.ndarray) -> str:
  p50, p99 = np.percentile(seconds, [50, 99]) * 1000
  return f'p50 {p50:.1f} ms, p99 {p99:.1f} ms'


def main() -> None:
  """Prints what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('run', help='the folder of a trained run')
  parser.add_argument('--clients', type=int, default=32)
  parser.add_argument('--seconds', type=float, default=300.0)
  arguments = parser.parse_args()
  load = measure(arguments.run, arguments.clients, arguments.seconds)
  count = len(load.reads) + len(load.writes)
  print(
    f'{arguments.clients} clients, {load.seconds:g} s: {count:,} requests, '
    f'{len(load.errors)} errors, {count / load.seconds:,.0f} a second; '
    f'recommend {_percentiles(load.reads)}; observe '
    f'{_percentiles(load.writes)}; memory {load.memory[1]:.0f} to '
    f'{load.memory[-1]:.0f} MiB; {load.compiled} programs compiled after the '
    f'start; first answer after {load.ready:.1f} s, warm after '
    f'{load.warm:.1f} s'
  )
  for error in load.errors[:5]:
    print(error, file=sys.stderr)


if __name__ == '__main__':
  main()
