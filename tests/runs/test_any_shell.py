"""Runs work whatever a folder is called and a shell has told JAX."""

import contextlib

import jax
import pytest

import dynllm_jax
from dynllm_jax import config as config_lib
from tests.testing import logs

NAME = 'store [lr=0.1] *?#%é'


def make_config(folder, name='events.csv'):
  """A configuration of a small log in `folder`, which is made there."""
  log = logs.random_log(1, num_events=120, num_times=80)
  rows = zip(log.users, log.items, log.times + logs.MONDAY)
  lines = [','.join(map(str, row)) for row in rows]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text('user_id,item_id,timestamp\n' + '\n'.join(lines))
  config = config_lib.default('mf')
  config.data.events = str(folder / name)
  config.data.dir = str(folder / 'data')
  config.data.min_user_items = config.data.min_item_users = 1
  config.model.dim = 4
  config.train.num_epochs = 1
  config.train.batch_size = config.eval.batch_size = 32
  config.eval.ks = (3,)
  config.eval.compare = ()
  return config


@contextlib.contextmanager
def seeds_moved_by(offset):
  jax.config.update('jax_random_seed_offset', offset)
  yield
  jax.config.update('jax_random_seed_offset', 0)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run in folders whose name means something to patterns and addresses."""
  folder = tmp_path_factory.mktemp('shell') / NAME
  results = dynllm_jax.train(make_config(folder), str(folder / 'run'))
  return folder, results


@pytest.mark.parametrize(
  'setting',
  [
    contextlib.nullcontext(),
    jax.enable_x64(True),
    jax.default_prng_impl('rbg'),
    jax.default_prng_impl('unsafe_rbg'),
    jax.threefry_partitionable(False),
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
    jax.transfer_guard('disallow'),
    jax.debug_nans(True),
    seeds_moved_by(7),
  ],
)
def test_a_run_is_evaluated_whatever_is_set_and_its_log_is_called(run, setting):
  folder, results = run
  config = make_config(folder, 'events.2021-01.csv')
  with setting:
    again = dynllm_jax.evaluate(config, str(folder / 'run'))
  assert again['test'] == results['test']


def test_a_run_goes_on_in_such_a_folder_with_other_settings(run, tmp_path):
  folder, _ = run
  config = make_config(folder)
  config.train.num_epochs = 2
  with (
    jax.enable_x64(True),
    jax.default_prng_impl('rbg'),
    jax.numpy_dtype_promotion('strict'),
    jax.numpy_rank_promotion('raise'),
    jax.transfer_guard('disallow'),
    seeds_moved_by(7),
  ):
    resumed = dynllm_jax.train(config, str(folder / 'run'))
  whole = dynllm_jax.train(config, str(tmp_path / 'run'))
  assert resumed['epochs'] == 2
  assert resumed['test'] == whole['test']
