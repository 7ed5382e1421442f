"""Training and ranking can be lowered for accelerators that are not here."""

import re

import jax
import numpy as np
import pytest

from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import pending_updates
from dynllm_jax.types import BoundSystem
from tests.testing import tiny_runs
from tests.testing import variants

pytestmark = pytest.mark.slow

BATCH = 16
# What every compiler of XLA knows, or replaces by its own operations.
PORTABLE_CALLS = set()


def trace_training(run, state):
  """The program that trains on four batches, traced."""
  order = jax.eval_shape(
    lambda key: feeds.epoch_order(run.plan, key, 0), state.key
  )
  data = feeds.EpochData(run.inputs, order, BATCH, run.plan.dedup_limits)
  chunk = batching.chunks(run.plan, 4)[0]
  return train.train_chunk.trace(run.trainer, data, state, chunk.batches)


def trace_ranking(run, state):
  """The program that ranks and applies four batches, traced."""
  bound = BoundSystem(run.system, state.params, run.inputs)
  pending = jax.eval_shape(
    lambda bound, memory: pending_updates.empty_pending_for(
      bound, memory, BATCH
    ),
    bound,
    state.memory,
  )
  memory = jax.eval_shape(
    evaluate.memory_for_replay, bound, state.memory, pending
  )
  return evaluate.replay_chunk.trace(
    bound,
    Ranking(np.ones(run.log.num_items + 1, bool), block_size=8),
    evaluate.ReplayState(memory, pending),
    batching.chunks(run.plan, 4)[0].batches,
    np.ones(4, bool),
    batch_size=BATCH,
  )


@pytest.mark.parametrize('trace', [trace_training, trace_ranking])
@pytest.mark.parametrize(
  'variant', ['dynllm+text+counts', 'sasrec', 'lightgcn']
)
def test_programs_lower_for_tpu_and_cuda(variant, trace):
  run = tiny_runs.prepare(variants.tiny_config(variant), batch=BATCH)
  state = jax.eval_shape(
    lambda inputs: train.init_state(run.trainer, 0, inputs, run.plan.capacity),
    run.inputs,
  )
  program = trace(run, state)
  for platform in ('tpu', 'cuda'):
    text = program.lower(lowering_platforms=(platform,)).as_text()

    # All four batches are one loop on the device.
    assert re.search(r'while.*tensor<4x', text), platform

    # Nothing calls back to Python or to code of another platform.
    calls = set(re.findall(r'custom_call @(\w+)', text))
    assert calls <= PORTABLE_CALLS, (platform, calls)
