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
# Sums of floats that a GPU adds up as they come. Of DynLLM at these widths two
# are of the loop over rounds, which adds to a row once.
UNORDERED = {'dynllm+text+counts': 2}
TRITON = '__gpu$xla.gpu.triton'  # kernels of this package
_SCATTER = re.compile(
  r'"stablehlo\.scatter"\((?P<operands>[^)]*)\) <\{(?P<attributes>.*?)\}> '
  r'\(\{(?P<body>.*?)\}\) : (?P<type>[^\n]*)',
  re.DOTALL,
)


def unordered_sums(text):
  """Types of the scatters in a program that add floats to rows met twice."""
  return [
    match['type']
    for match in _SCATTER.finditer(text)
    if 'unique_indices = true' not in match['attributes']
    and re.search(r'stablehlo\.add .*f(16|32)', match['body'])
  ]


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


def test_unordered_sums_are_found():
  rows = np.array([1, 1])
  add = lambda table, **how: table.at[rows].add(1, **how)
  find = lambda dtype, **how: unordered_sums(
    jax.jit(lambda table: add(table, **how))
    .lower(np.zeros([4, 2], dtype))
    .as_text()
  )
  assert len(find(np.float32)) == 1
  assert not find(np.float32, unique_indices=True) and not find(np.int32)


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
    calls = set(re.findall(r'custom_call @([\w.$]+)', text))
    kernels = {TRITON} if platform == 'cuda' else set()
    assert calls <= PORTABLE_CALLS | kernels, (platform, calls)

    # A GPU adds up in an order of its own, which may change from run to run.
    if platform == 'cuda':
      training = trace is trace_training
      expected = UNORDERED.get(variant, 0) if training else 0
      assert len(unordered_sums(text)) == expected


def test_products_of_a_step_have_the_precision_that_is_asked_for():
  config = variants.tiny_config('tgn')
  config.train.precision = 'bf16'
  run = tiny_runs.prepare(config, batch=BATCH)
  state = jax.eval_shape(
    lambda inputs: train.init_state(run.trainer, 0, inputs, run.plan.capacity),
    run.inputs,
  )
  program = trace_training(run, state).lower(lowering_platforms=('tpu',))
  products = re.findall(r'stablehlo.dot_general .*', program.as_text())

  # Backward, too, where the context of the step is no longer open.
  assert len(products) > 30
  for product in products:
    assert 'lhs_precision_type = bf16, rhs_precision_type = bf16' in product
    assert 'accumulation_type = f32' in product
