"""Texts that stay on the host: what a chunk reads is there, and the same."""

import pathlib
import re

import jax
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.engine import resident_texts
from dynllm_jax.facets import lookup
from dynllm_jax.types import InputError
from tests.testing import logs
from tests.testing import tiny_runs
from tests.testing import variants

BATCH = 8


@pytest.mark.slow
def test_a_chunk_has_the_texts_of_its_events_and_few_others():
  log = logs.random_log(2, num_events=200, num_times=120)
  inputs = logs.random_inputs(log, padding=BATCH)
  few, texts = resident_texts.split(inputs.facets, True, 0.0)
  assert len(few.texts) == 1 and len(texts) == 10
  texts = np.asarray(texts)
  on_host = inputs.replace(facets=few)
  plan = batching.plan_batches(log.times, 0, log.num_events, BATCH)
  find = jax.jit(lookup.lookup)
  for chunk in batching.chunks(plan, 3):
    bank = resident_texts.with_texts(on_host, texts, chunk).facets
    assert len(bank.texts).bit_count() == 1
    stop = (chunk.batches.start + chunk.batches.size).max()
    # The last event again and again, so that all chunks share a program.
    at = chunk.batches.start[0] + np.arange(3 * BATCH)
    at = np.minimum(at, stop - 1)
    rows = np.asarray(find(inputs.facets, log.users[at], log.times[at]))
    np.testing.assert_array_equal(lookup.embeddings(bank, rows), texts[rows])
    # Nobody and no time of the padding has a text.
    nobody = np.zeros(3 * BATCH, np.int32)
    assert not find(bank, nobody, nobody).any() and bank.present[0] == 0


@pytest.mark.slow  # compiles two epochs and two replays
def test_training_and_ranking_are_the_same_wherever_texts_are():
  log = logs.random_log(3, num_events=200, num_times=120)
  config = variants.tiny_config('dynllm')
  # Facets are all that a text reaches; the rest would only be compiled.
  config.model.update({'memory': False, 'neighborhood': False})
  config.train.chunk = 2
  whole = tiny_runs.prepare(config, log, batch=32)
  facets = whole.inputs.facets
  few, texts = resident_texts.split(facets, whole.system.reads_facets, 0.0)
  on_host = whole._replace(inputs=whole.inputs.replace(facets=few))
  ends = []
  for run, host in ((whole, None), (on_host, np.asarray(texts))):
    state, _ = run.epoch(run.first_state(), host)
    memory, ranks = run.rank_later_events(state, host)
    ends.append((state.params, memory, ranks))
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_mapped_table_does_not_stay_in_memory(tmp_path):
  """Rows at random, 16,000 of them a page apart, of a file of 128 MiB."""
  texts = np.lib.format.open_memmap(
    tmp_path / 'texts.npy', 'w+', np.float16, (1 << 17, 512)
  )
  texts[::8, 0] = np.arange(1 << 14) % 2048
  texts.flush()
  texts = np.load(tmp_path / 'texts.npy', mmap_mode='r')
  rows = np.random.default_rng(0).permutation(1 << 14) * 8
  before = resident_file_bytes()
  got = resident_texts.read_texts(texts, rows)
  assert resident_file_bytes() - before < 16 << 20
  np.testing.assert_array_equal(got[:, 0], rows // 8 % 2048)
  np.testing.assert_array_equal(texts[rows], got)
  assert resident_file_bytes() - before > 64 << 20  # as it would be


def resident_file_bytes():
  """Pages of files that this process holds."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'RssFile:\s+(\d+) kB', status)[1]) << 10


def test_batches_in_no_order_are_refused():
  log = logs.random_log(2)
  plan = batching.plan_batches(log.times, 0, log.num_events, BATCH)
  plan = plan._replace(events=np.arange(log.num_events))
  with pytest.raises(InputError, match='device_gib: .* not fed by the stream'):
    resident_texts.with_texts(None, np.zeros((2, 4), np.float16), plan)


def test_the_budget_decides():
  log = logs.random_log(2)
  bank = logs.random_bank(log, 4)
  assert resident_texts.split(bank, True, bank.texts.nbytes / 2**30) == (
    bank,
    None,
  )
  few, texts = resident_texts.split(bank, False, 4.0)
  assert texts is None and few.texts.shape == (1, 4)
  with pytest.raises(InputError, match='device_gib: -1'):
    resident_texts.split(bank, True, -1)
