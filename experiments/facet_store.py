"""Memory and time that a store of many facet rows takes.

    python -m experiments.facet_store --rows=10000000 --folder=runs/facet_store

There are three phases, each in a process of its own, so that each has a peak
of memory of its own:

    fill    appends random rows, block by block, as an encoder does
    reopen  opens the store, finds keys, reads rows with their check sums
    gather  reads the facets of chunks of batches from it, as training does

Anonymous memory is what a process has taken for itself. Resident memory also
counts pages of the mapped files, which the system takes back when it needs
them. The folder is removed at the end; it takes 800 bytes a row of 384 dims.
"""

import datetime
import multiprocessing
import os
import pathlib
import re
import shutil
import threading
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

from dynllm_jax.engine import batching
from dynllm_jax.engine import resident_texts
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS
from dynllm_jax.types import Inputs
from dynllm_jax.types import PlannedBatch

_ROWS = flags.DEFINE_integer('rows', 10_000_000, 'Rows of the store.')
_DIM = flags.DEFINE_integer('dim', 384, 'Half-precision numbers of a row.')
_FOLDER = flags.DEFINE_string('folder', 'runs/facet_store', 'Where it is.')
_CHUNKS = flags.DEFINE_integer('chunks', 60, 'How many chunks are gathered.')
_OUT = flags.DEFINE_string(
  'out', '', 'A file for the page, which is printed in any case.'
)

_ABOUT = {'encoder': 'synthetic', 'version': 1}
_BLOCK = 100_000  # rows of an append
_READS = 10_000
_BATCH, _BATCHES = 1024, 16  # of a chunk, the defaults of training
_PROFILES = 5  # of a user


def fill(folder: str, rows: int, dim: int) -> dict[str, Any]:
  """Appends rows of random numbers."""
  store = Store(folder, _ABOUT)
  draw = np.random.default_rng(0)
  for first in range(0, rows, _BLOCK):
    numbers = range(first, min(first + _BLOCK, rows))
    block = draw.standard_normal((len(numbers), dim), np.float32)
    block = block.astype(np.float16)
    store.append([digest(n) for n in numbers], [row.tobytes() for row in block])
  size = sum(path.stat().st_size for path in pathlib.Path(folder).iterdir())
  return {'note': f'{len(store):,} rows, {size / 1e9:.2f} GB on the disk'}


def reopen(folder: str, rows: int, dim: int) -> dict[str, Any]:
  """Opens the store and reads rows by their keys."""
  began = time.perf_counter()
  store = Store(folder, _ABOUT)
  opened = time.perf_counter() - began

  wanted = np.random.default_rng(1).integers(0, rows, _READS).tolist()
  began = time.perf_counter()
  found = store.find([digest(n) for n in wanted]).tolist()
  if found != wanted:
    raise AssertionError('a key leads to another row')
  for row in found:
    if len(store.read(row)) != 2 * dim:
      raise AssertionError('a row of another length')

  each = (time.perf_counter() - began) / _READS
  return {
    'note': f'open in {opened:.1f} s, a row found and read in '
    f'{1e6 * each:.0f} us'
  }


def gather(folder: str, rows: int, dim: int, chunks: int) -> dict[str, Any]:
  """Reads what chunks of a random log need, as training and ranking do."""
  import jax

  # Rows of one length are a table on the disk.
  texts = np.memmap(pathlib.Path(folder, 'payload.bin'), np.float16, 'r')
  texts = np.asarray(texts.reshape(rows, dim))
  profiles = rows // len(FACETS)
  users = profiles // _PROFILES
  draw = np.random.default_rng(2)
  bank = FacetBank(
    texts=texts,
    offsets=np.append(0, np.arange(users + 1) * _PROFILES).astype(np.int32),
    closes=np.tile(np.arange(1, _PROFILES + 1, dtype=np.int32), users),
    index=np.arange(users * _PROFILES * 4, dtype=np.int32).reshape(-1, 4),
    longest=_PROFILES,
  )
  few, host = resident_texts.split(bank, True, 0.0)
  events = chunks * _BATCHES * _BATCH
  inputs = jax.device_put(
    Inputs(
      users=draw.integers(1, users + 1, events, np.int32),
      items=None,
      times=np.sort(draw.integers(1, _PROFILES + 1, events, np.int32)),
      user_graph=None,
      item_graph=None,
      same_time=None,
      train_events=np.asarray(events, np.int32),
      mean_return_days=None,
      item_text=None,
      text_mean=None,
      facets=few,
      num_users=users,
      num_items=0,
    )
  )

  starts = np.arange(0, events, _BATCH, dtype=np.int32)
  plan = batching.BatchPlan(
    PlannedBatch(
      starts,
      np.full_like(starts, _BATCH),
      np.zeros_like(starts),
      np.ones_like(starts, bool),
    ),
    batch_size=_BATCH,
    num_parts=1,
    num_split_groups=0,
  )

  seconds, peaks, sizes = [], [], []
  for chunk in batching.chunks(plan, _BATCHES):
    began = time.perf_counter()
    got = resident_texts.with_texts(inputs, host, chunk).facets
    got.texts.block_until_ready()
    seconds.append(time.perf_counter() - began)
    peaks.append(provenance.peak_memory_bytes())
    sizes.append(got.texts.nbytes)
  some = np.asarray(got.present[1:9])
  np.testing.assert_array_equal(np.asarray(got.texts[1:9]), texts[some])

  tenth = max(chunks // 10, 1)
  return {
    'note': (
      f'{max(sizes) / 1e6:.0f} MB a chunk of {_BATCHES} batches, in '
      f'{1e3 * np.median(seconds):.0f} ms; resident peak after {tenth} chunks '
      f'{peaks[tenth - 1] / 1e6:,.0f} MB, after {chunks} '
      f'{peaks[-1] / 1e6:,.0f} MB'
    )
  }


def _measured(function: str, args: tuple[Any, ...]) -> dict[str, Any]:
  """Runs a phase in this process and watches its memory meanwhile."""
  done, anonymous = threading.Event(), [0]

  def watch() -> None:
    while not done.wait(0.02):
      status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
      anonymous.append(int(re.search(r'RssAnon:\s+(\d+)', status)[1]) * 1024)

  watcher = threading.Thread(target=watch)
  watcher.start()
  began = time.perf_counter()
  try:
    result = globals()[function](*args)
  finally:
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
  return {
    **result,
    'phase': function,
    'seconds': seconds,
    'anonymous': max(anonymous),
    'resident': provenance.peak_memory_bytes(),
  }


def main(argv: list[str]) -> None:
  """Runs the phases and prints the page."""
  del argv
  if os.path.exists(_FOLDER.value):
    raise app.UsageError(
      f'--folder: {_FOLDER.value!r} is there; allowed: a folder that can be '
      'made and removed'
    )

  shape = (_FOLDER.value, _ROWS.value, _DIM.value)
  phases = [
    ('fill', shape),
    ('reopen', shape),
    ('gather', (*shape, _CHUNKS.value)),
  ]
  spawn = multiprocessing.get_context('spawn')
  records = []
  try:
    for phase in phases:
      with spawn.Pool(1) as pool:
        records.append(pool.apply(_measured, phase))
      print(records[-1], flush=True)
  finally:
    shutil.rmtree(_FOLDER.value, ignore_errors=True)

  page = _page(records)
  print(page)
  if _OUT.value:
    atomic.write_atomically(pathlib.Path(_OUT.value), page)


def _page(records: list[dict[str, Any]]) -> str:
  """The page, a row for each phase."""
  lines = [
    f'| {r["phase"]} | {r["seconds"]:,.1f} | {r["anonymous"] / 1e6:,.0f} | '
    f'{r["resident"] / 1e6:,.0f} | {r["note"]} |'
    for r in records
  ]

  return '\n'.join(
    [
      '# A store of many facet rows',
      '',
      f'{_ROWS.value:,} synthetic rows of {_DIM.value} dims in half precision; '
      f'commit `{provenance.commit()[:12]}`, {datetime.date.today()}. '
      'Each phase is a process of its own; memory is its peak.',
      '',
      '| phase | seconds | anonymous MB | resident MB | |',
      '|---|---|---|---|---|',
      *lines,
      '',
      'Anonymous memory is what a process has taken for itself; resident '
      'memory also counts\npages of the mapped files.',
      '',
      '```',
      f'python -m experiments.facet_store --rows={_ROWS.value} '
      f'--dim={_DIM.value} --chunks={_CHUNKS.value}',
      '```',
      '',
    ]
  )


if __name__ == '__main__':
  app.run(main)
