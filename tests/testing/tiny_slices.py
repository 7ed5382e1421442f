"""A tiny system in training, slice by slice, for tests of the experiments."""

from dynllm_jax import config as config_lib
from experiments import random_logs
from experiments import slices as slices_lib

FIELDS = {
  'train.batch_size': 32,
  'eval.batch_size': 16,
  'model.dim': 8,
  'model.time_dim': 4,
  'model.num_neighbors': 3,
}


def build(system, spread=0, log=None):
  """The configuration and the slices, of 64 events, of a system.

  Args:
    system: config argument.
    spread: so many slices at even distances, if not 0.
    log: 300 random events of 20 users and 30 items if it is None.
  """
  config = config_lib.default(system)
  config.update_from_flattened_dict(FIELDS)
  if system == 'dynllm':
    config.model.distill.top_r = 4
  log = log or random_logs.uniform(300, 20, 30)
  training = slices_lib.build(
    config, log, *random_logs.texts(log, 6 if system == 'dynllm' else 0)
  )
  return config, slices_lib.Slices(training, 64, spread)
