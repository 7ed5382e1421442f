"""The step over several devices: fake ones, in a process of their own."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import variants

from dynllm_jax import sharding
from dynllm_jax.types import InputError

_PROGRAM = '''
import jax, numpy as np
import helpers, variants
from dynllm_jax import config as config_lib, feeds, sharding, train

log = helpers.random_log(3, num_users=12, num_items=15, num_events=150,
                         num_times=70)
inputs = helpers.random_inputs(log, padding=16)
for variant in ('mf', 'sasrec', 'dynllm+walk'):
  losses, first = [], []
  for data in (1, 4):
    config = variants.tiny_config(variant)
    config.mesh.data = data
    mesh = sharding.make_mesh(config)
    assert mesh.devices.size == data
    system = config_lib.system_module(config.model.name).build(config.model)
    plan = feeds.training_plan(system, log, 16)
    trainer = train.make_trainer(system, config, mesh, len(plan.start))
    placed = sharding.replicate(mesh, inputs)
    state = sharding.replicate(mesh, train.init_state(
        trainer, 0, placed, plan.capacity))
    row = [c[0] for c in (plan.start, plan.size, plan.part, plan.ready)]
    order = feeds.epoch_order(plan, state.key, state.step)
    step = jax.jit(train.train_step, static_argnums=(0, 1))
    _, (loss, count) = step(trainer, 16, placed, state, tuple(row), order)
    first.append(float(loss / count))
    for _ in range(2):
      state, record = train.run_epoch(
          trainer, state, placed, plan, lambda events, loss: None)
      losses.append(record['loss'])
  np.testing.assert_allclose(first[0], first[1], rtol=1e-6)
  # Adam turns a gradient that is rounding alone into a full step.
  np.testing.assert_allclose(losses[:2], losses[2:], rtol=1e-2)
print('equal')
'''


def test_four_devices_train_as_one():
  done = subprocess.run(
      [sys.executable, '-c', _PROGRAM], cwd=os.path.dirname(__file__),
      env={**os.environ, 'JAX_PLATFORMS': 'cpu',
           'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
      capture_output=True, text=True, timeout=900, check=False)
  assert done.stdout.strip() == 'equal', done.stderr[-2000:]


@pytest.mark.parametrize('field, value, words', [
    ('mesh.data', 1000, 'config.mesh: 1000 x 1'),
    ('mesh.nodes', 0, 'config.mesh'),
])
def test_a_mesh_that_cannot_be_is_refused(field, value, words):
  config = variants.tiny_config('dynllm')
  config.mesh[field.removeprefix('mesh.')] = value
  config.train.batch_size = config.eval.batch_size = 1000
  with pytest.raises(InputError, match=words):
    sharding.make_mesh(config)


def test_bytes_are_counted_by_path():
  mesh = sharding.make_mesh(variants.tiny_config('dynllm'))
  tree = sharding.replicate(mesh, {'a': {'b': np.zeros([3, 5], np.float32)}})
  assert sharding.bytes_per_device(tree) == {'a.b': 3 * 5 * 4}
  assert len(mesh.devices.ravel()) == len(jax.devices())
