"""What a durable event costs: the journal alone, without a model.

    python -m experiments.journal_speed [--journal=URL] [--folder=DIR]

It measures a sync of the disk, appends of 1, 64 and 2,048 events, each with an
id, and 32 threads that append an event at a time and share commits. The folder
should be on the disk that a journal would be on.
"""

import os
import pathlib
import tempfile
import threading
import time

from absl import app
from absl import flags
import numpy as np

from dynllm_jax.live import batches
from dynllm_jax.live.batches import Batch
from dynllm_jax.live.group_commit import GroupCommit
from dynllm_jax.live.journal import event_digest
from dynllm_jax.live.journal import JournalWriter

_JOURNAL = flags.DEFINE_string('journal', '', 'A URL; default SQLite.')
_FOLDER = flags.DEFINE_string('folder', None, 'Where SQLite writes.')
_TIME = 1_700_000_000
_SIZES = ((1, 1000), (64, 200), (2048, 30))  # events of a batch, batches
_THREADS, _EACH = 32, 100


def _say(what: str, seconds: list[float], events: int) -> None:
  """A line: quantiles, and events a second of all the time."""
  p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
  print(
    f'{what:<36} p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  '
    f'{events / sum(seconds):10,.0f} a second',
    flush=True,
  )


def _timed(times: int, work) -> list[float]:
  """Seconds of each call of `work(number)`."""
  taken = []
  for number in range(times):
    start = time.perf_counter()
    work(number)
    taken.append(time.perf_counter() - start)
  return taken


def _batch(size: int) -> Batch:
  names = [str(number) for number in range(size)]
  return Batch(
    tuple(f'user {name}' for name in names),
    tuple(f'item {name}' for name in names),
    tuple(_TIME + number for number in range(size)),
  )


def _sync(folder: pathlib.Path) -> None:
  with open(folder / 'synced', 'wb') as file:

    def write(number: int) -> None:
      file.write(b'x' * 4096)
      file.flush()
      os.fsync(file.fileno())

    _say('write of 4 KiB and fsync', _timed(500, write), 500)


def _appends(journal: JournalWriter) -> None:
  tip = journal.tip()
  for size, times in _SIZES:
    batch = _batch(size)

    def append(number: int, size: int = size, batch: Batch = batch) -> None:
      nonlocal tip
      rows = zip(batch.users, batch.items, batch.times)
      ids = {
        f'{size} {number} {n}': event_digest(*row) for n, row in enumerate(rows)
      }
      tip = journal.append(batches.to_json(batch), tip, ids)

    _say(
      f'batch of {size:,}, ids included', _timed(times, append), size * times
    )


def _threads(journal: JournalWriter) -> None:
  tip = journal.tip()
  one, taken = _batch(1), []

  def commit(parts):
    nonlocal tip
    tip = journal.append(batches.to_json(batches.joined(parts)), tip)
    return parts

  together = GroupCommit(commit, 2048)

  def work() -> None:
    taken.extend(_timed(_EACH, lambda number: together.do(one)))

  threads = [threading.Thread(target=work) for _ in range(_THREADS)]
  start, before = time.perf_counter(), tip.position
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  seconds = time.perf_counter() - start
  _say(f'{_THREADS} threads, an event a call', taken, len(taken) * _THREADS)
  commits = tip.position - before
  print(
    f'  {len(taken) / seconds:,.0f} events a second in all, '
    f'{len(taken) / commits:.1f} events a commit'
  )


def main(argv: list[str]) -> None:
  del argv
  with tempfile.TemporaryDirectory(dir=_FOLDER.value) as made:
    folder = pathlib.Path(made)
    _sync(folder)
    with JournalWriter(_JOURNAL.value or folder / 'journal.sqlite') as journal:
      _appends(journal)
      _threads(journal)


if __name__ == '__main__':
  app.run(main)
