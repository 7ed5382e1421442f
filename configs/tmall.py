"""A log of Tmall's size (SPEC 2.3), simulated unless a real one is named."""

from dynllm_jax import config as config_lib


def get_config(arg: str = ''):
  """The paper's setting; `arg` names a system, '' is dynllm."""
  config = config_lib.default(arg)
  config.data.source = 'simulated'
  config.data.size = 'tmall'
  return config
