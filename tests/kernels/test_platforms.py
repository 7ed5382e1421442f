"""What is computed otherwise on other devices is the same all the same."""

import functools

import jax
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import sparse_update
from dynllm_jax.engine import training_step
from dynllm_jax.kernels import platforms
from experiments import random_logs
from experiments import slices as slices_lib
from tests.testing import tiny_slices


def test_a_step_has_the_same_result_in_the_ways_of_a_gpu(monkeypatch):
  """Attention, time codes, facets, searches, clipping and sparse tables."""
  config = config_lib.default('dynllm')
  config.update_from_flattened_dict(tiny_slices.FIELDS)
  config.model.distill.top_r = 4
  config.model.item_id_embedding = True
  log = random_logs.uniform(300, 20, 3000)
  slices = slices_lib.Slices(
    slices_lib.build(config, log, *random_logs.texts(log, 6)), 64
  )

  # The table of the items is one that is read by rows.
  seen = []
  real_update = sparse_update.update
  monkeypatch.setattr(
    sparse_update,
    'update',
    lambda optimizer, rows, *args, **kwargs: (
      seen.append(sorted(rows)) or real_update(optimizer, rows, *args, **kwargs)
    ),
  )

  def step(state, batch):
    """Compiles a program that no call before has left in a cache."""
    run = jax.jit(functools.partial(training_step.train_step, slices.trainer))
    state, (loss, _) = run(slices.data, state, slices.plan.batches[batch])
    return loss, state

  _, first = step(slices.state, 0)  # so that there is a memory to be updated
  here = step(first, 1)
  monkeypatch.setattr(platforms, 'on_gpu', lambda own, _, *args: own(*args))
  monkeypatch.setattr(platforms, 'on_cpu', lambda _, other, *args: other(*args))
  there = step(first, 1)
  assert seen[0] == seen[-1] != []

  def compared(result):
    """Losses, memory, and the sums of gradients: Adam enlarges rounding."""
    loss, state = result
    return loss, state.memory, state.opt_state[0].mu, state.pending

  for one, other in zip(*map(jax.tree.leaves, map(compared, (here, there)))):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
