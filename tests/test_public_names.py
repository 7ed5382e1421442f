"""What `import dynllm_jax` gives: light to import, and enough for a run."""

import json
import subprocess
import sys

import pytest

import dynllm_jax
from dynllm_jax import config as config_lib


def test_importing_the_package_imports_no_library():
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'import sys, dynllm_jax; print(dynllm_jax.__version__);'
      'print({"jax", "numpy", "ml_collections"} & set(sys.modules))',
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == [dynllm_jax.__version__, 'set()']


def test_the_public_names_are_there_and_no_others():
  for name in dynllm_jax.__all__:
    assert callable(getattr(dynllm_jax, name))
    assert name in dir(dynllm_jax)
  with pytest.raises(AttributeError, match="no attribute 'fit'"):
    dynllm_jax.fit  # noqa: B018 (the attribute is the test)


@pytest.fixture
def config(tmp_path):
  """A count-based system, which needs no training, on the demo log."""
  config = config_lib.default('repeat')
  config.data.source = 'simulated'
  config.data.size = 'demo'
  config.data.dir = str(tmp_path / 'data')
  config.facets.encoder.dim = 4
  config.eval.ks = (5, 10)
  config.eval.compare = ()
  return config


def test_a_program_can_load_train_and_evaluate(config, tmp_path):
  log = dynllm_jax.load(config)
  assert (log.num_users, log.num_items, log.num_events) == (300, 400, 9000)

  workdir = tmp_path / 'run'
  trained = dynllm_jax.train(config, str(workdir))
  assert trained['data']['fingerprint'] == log.fingerprint
  assert 0 < trained['test']['recall@5'] <= trained['test']['recall@10']
  assert json.loads((workdir / 'results.json').read_text()) == trained

  config.eval.ks = (10,)
  evaluated = dynllm_jax.evaluate(config, str(workdir))
  assert evaluated['test']['recall@10'] == trained['test']['recall@10']
  assert 'recall@5' not in evaluated['test']


def test_without_a_test_there_are_no_results(config, tmp_path):
  config.eval.test = False
  assert dynllm_jax.train(config, str(tmp_path / 'run')) == {}
  assert not (tmp_path / 'run' / 'results.json').exists()


def test_bad_input_is_an_input_error(config, tmp_path):
  config.seed = -1
  for function in (dynllm_jax.train, dynllm_jax.evaluate):
    with pytest.raises(dynllm_jax.InputError, match='config.seed: -1'):
      function(config, str(tmp_path / 'run'))
