"""A process that observes until it is killed, at a moment it is told.

    python -m tests.testing.killed_recommender WORKDIR MOMENT COUNT SEED

Threads observe the events of `kept_runs.events`, each with an id, one or a few
in a call, and another one writes snapshots. Each acknowledged id is printed at
once. When MOMENT has come COUNT times the process kills itself with SIGKILL, as
`kill -9` does: nothing is tidied up.
"""

import os
import random
import signal
import sys
import threading

import sqlalchemy as sa

from dynllm_jax import Recommender
from dynllm_jax.live.journal import JournalWriter
from dynllm_jax.live.live_state import LiveState
from tests.testing import kept_runs

_NUM_THREADS = 3


class Bomb:
  """Kills the process when a moment has come so many times."""

  def __init__(self, moment: str, count: int) -> None:
    self._moment, self._left = moment, count
    self._lock = threading.Lock()

  def at(self, moment: str) -> None:
    with self._lock:
      if moment == self._moment:
        self._left -= 1
        if self._left == 0:
          os.kill(os.getpid(), signal.SIGKILL)


def arm(bomb: Bomb) -> None:
  """Hooks into the places where a kill might hurt."""

  def around(kind, name, before='', after=''):
    function = getattr(kind, name)

    def wrapped(*args, **kwargs):
      bomb.at(before)
      result = function(*args, **kwargs)
      bomb.at(after)
      return result

    setattr(kind, name, wrapped)

  # Of an append alone: the journal's tables are committed before the first.
  appending = threading.local()
  append = JournalWriter.append

  def marked(*args, **kwargs):
    appending.now = True
    try:
      return append(*args, **kwargs)
    finally:
      appending.now = False

  def commit(connection):
    del connection
    if getattr(appending, 'now', False):
      bomb.at('before commit')

  JournalWriter.append = marked
  around(JournalWriter, 'append', 'before append', 'after commit')
  around(LiveState, 'apply', 'before apply', 'after apply')
  around(LiveState, '_open', 'in apply')
  around(os, 'replace', 'before snapshot', 'after snapshot')
  around(os, 'fsync', 'in snapshot')
  sa.event.listen(sa.engine.Engine, 'commit', commit)


MOMENTS = (
  *('before append', 'before commit', 'after commit', 'before apply'),
  *('in apply', 'after apply', 'in snapshot', 'before snapshot'),
  'after snapshot',
)


def observe_all(shop: Recommender, seed: int) -> None:
  """Observes all events, those that are acknowledged already again."""
  events = kept_runs.events(kept_runs.FIRST_TIME)
  said = threading.Lock()

  def work(number: int) -> None:
    draw = random.Random(f'{seed} {number}')
    mine = list(range(number, len(events), _NUM_THREADS))
    while mine:
      chosen, mine = mine[: (size := draw.choice((1, 1, 4)))], mine[size:]
      names = [f'event {n}' for n in chosen]
      shop.observe([events[n] for n in chosen], ids=names)
      with said:
        print('\n'.join(names), flush=True)

  threads = [
    threading.Thread(target=work, args=(n,)) for n in range(_NUM_THREADS)
  ]
  for thread in threads:
    thread.start()
  while any(thread.is_alive() for thread in threads):
    shop.snapshot()
  for thread in threads:
    thread.join()


def main(workdir: str, moment: str, count: str, seed: str) -> None:
  arm(Bomb(moment, int(count)))
  with Recommender.restore(workdir) as shop:
    observe_all(shop, int(seed))


if __name__ == '__main__':
  main(*sys.argv[1:])
