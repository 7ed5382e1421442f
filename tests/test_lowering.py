"""Training and ranking can be lowered for accelerators that are not here."""

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import train
from dynllm_jax.graph import pending_updates
from dynllm_jax.graph import training_graph
from dynllm_jax.parallel import device_mesh
from tests.testing import logs
from tests.testing import variants

pytestmark = pytest.mark.slow

BATCH = 16


@pytest.mark.parametrize('variant', ['dynllm+text', 'sasrec', 'lightgcn'])
def test_programs_lower_for_tpu_and_cuda(variant):
  log = logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=70
  )
  inputs = logs.random_inputs(log, padding=BATCH).replace(
    train_graph=training_graph.train_graph(log)
  )
  config = variants.tiny_config(variant)
  system = config_lib.system_module(config.model.name).build(config.model)
  plan = feeds.training_plan(system, log, BATCH)
  trainer = train.make_trainer(
    system, config, device_mesh.make_mesh(config), len(plan.start)
  )
  state = jax.eval_shape(
    lambda inputs: train.init_state(trainer, 0, inputs, plan.capacity), inputs
  )
  column = np.zeros(4, np.int32)
  rows = (column, column, column, column > 0)
  order = jax.eval_shape(lambda key: feeds.epoch_order(plan, key, 0), state.key)
  traced = [train.train_chunk.trace(trainer, BATCH, inputs, state, rows, order)]
  pending = jax.eval_shape(
    lambda state, inputs: pending_updates.empty_pending_for(
      system, state.params, state.memory, inputs, BATCH
    ),
    state,
    inputs,
  )
  memory = jax.eval_shape(
    lambda *args: evaluate.memory_for_replay(system, *args),
    state.params,
    state.memory,
    inputs,
    pending,
  )
  traced.append(
    evaluate.replay_chunk.trace(
      system,
      evaluate.Ranking(8, 0),
      BATCH,
      state.params,
      memory,
      pending,
      inputs,
      np.ones(log.num_items + 1, bool),
      (*rows, column > 0),
    )
  )
  for program in traced:
    for platform in ('tpu', 'cuda'):
      text = program.lower(lowering_platforms=(platform,)).as_text()
      assert 'stablehlo' in text
