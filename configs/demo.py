"""A small simulated log: a complete run in a minute or two on a laptop."""

from dynllm_jax import config as config_lib


def get_config(arg: str = ''):
  """The configuration; `arg` names a system, '' is dynllm+text."""
  config = config_lib.default(arg or 'dynllm+text')
  config.data.source = 'simulated'
  config.data.size = 'demo'
  config_lib.set_known(
    config.model,
    dim=64,
    time_dim=32,
    num_neighbors=10,
    num_layers=1,
    distill__top_r=40,
  )
  config_lib.set_train(
    config,
    batch_size=256,
    num_epochs=10,
    patience=3,
    loss='softmax',
    num_negatives=128,
    learning_rate=3e-3,
  )
  return config
