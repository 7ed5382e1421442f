"""A run's programs are compiled once, however many chunks and epochs it has."""

import collections

import jax.monitoring

from dynllm_jax.runs import prepared
from tests.testing import logs
from tests.testing import run_folders

COMPILE = '/jax/core/compile/backend_compile_duration'


def test_chunks_epochs_and_splits_share_their_programs(tmp_path):
  """Arrays of another placement would compile for minutes what is there."""
  # No group of equal times is larger than a batch, so that all capacities are
  # one.
  log = logs.random_log(
    3, num_users=12, num_items=15, num_events=450, num_times=220
  )
  config = run_folders.config_of('blend', log, tmp_path)
  config.train.chunk = 3
  run = prepared.prepare(config)
  assert len(run.train_plan.batches) > 2 * config.train.chunk
  compiled = collections.Counter()

  def count(event, value, **about):
    if event == COMPILE:
      compiled[about['fun_name']] += 1

  jax.monitoring.register_scalar_listener(count)
  try:
    state = prepared.initial_state(run)
    for _ in range(2):
      state, _ = prepared.train_one_epoch(run, state)
      prepared.rank_splits(run, state, ('validation', 'test'))
  finally:
    jax.monitoring.unregister_scalar_listener(count)
  assert compiled['jit(train_chunk)'] == 1
  assert compiled['jit(replay_chunk)'] == 1
  assert set(compiled.values()) == {1}, compiled
