"""UCI Online Retail: the raw file, or its cleaned interactions."""

from dynllm_jax import config as config_lib


def get_config(arg: str = ''):
  """Settings chosen on validation.

  Args:
    arg: names a system, '' dynllm+text+counts.
  """
  config = config_lib.default(arg or 'dynllm+text+counts')
  config.data.source = 'online_retail'
  config_lib.set_known(
    config.model,
    num_neighbors=20,
    num_layers=1,
    time_dim=32,
    item_id_embedding=True,
    event_features=True,
    copy_neighbors=100,
  )
  config_lib.set_train(
    config,
    batch_size=1024,
    loss='bpr',
    num_negatives=1,
    learning_rate=1e-3,
    num_epochs=10,
    final_learning_rate=0.05,
    patience=3,
  )
  return config
