"""Tests of train.precision: which platform allows which."""

import jax
import jax.numpy as jnp
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import precision
from dynllm_jax.runs import config_check
from dynllm_jax.types import InputError

ALLOWED = {
  'cpu': {'default', 'float32'},
  'tpu': {'default', 'float32', 'bf16'},
  'gpu': {'default', 'float32', 'tf32', 'bf16'},
  'metal': {'default'},
}


@pytest.mark.parametrize('platform', ALLOWED)
@pytest.mark.parametrize('name', ['default', 'float32', 'tf32', 'bf16'])
def test_a_platform_refuses_what_it_cannot(platform, name):
  config = config_lib.default('tgn')
  config.train.precision = name
  if name in ALLOWED[platform]:
    precision.check(config.train, platform)
  else:
    with pytest.raises(InputError, match=f'config.train.precision: .{name}.'):
      precision.check(config.train, platform)


def test_a_run_is_refused_before_data_are_read():
  config = config_lib.default('popularity')
  config.data.source = 'simulated'
  config.train.precision = 'bf16'
  with pytest.raises(InputError, match='on a device of kind cpu'):
    config_check.check(config)


@pytest.mark.parametrize(
  'name, told',
  [
    ('default', 'highest'),  # as the tests tell JAX
    ('float32', 'HIGHEST'),
    ('tf32', 'TF32_TF32_F32'),
    ('bf16', 'BF16_BF16_F32'),
  ],
)
def test_products_are_traced_with_it(name, told):
  rows = jnp.zeros([2, 2])
  with precision.products(name):
    traced = jax.make_jaxpr(lambda x: (x @ x, jnp.dot(x, x)))(rows)
  found = [str(e.params['precision']) for e in traced.eqns]
  assert len(found) == 2
  assert all(told.lower() in text.lower() for text in found)
