"""Amazon Reviews 2014, Beauty, at 5 / 5."""

from dynllm_jax import config as config_lib


def get_config(arg: str = ''):
  """Settings chosen on validation, those of event_log.py.

  Args:
    arg: names a system, '' dynllm+text+counts.
  """
  config = config_lib.default(arg or 'dynllm+text+counts')
  config.data.source = 'amazon_reviews'
  config.data.min_user_items = 5
  config.data.min_item_users = 5
  config_lib.set_known(
    config.model,
    num_neighbors=20,
    num_layers=1,
    time_dim=32,
    item_id_embedding=True,
    event_features=True,
    # DynLLM's facets on TGN's network (SPEC 3.8) rank better than its own.
    network='tgn',
    item_text=False,
    fusion__mode='added',
  )
  config_lib.set_train(
    config,
    batch_size=1024,
    loss='bpr',
    num_negatives=1,
    learning_rate=3e-3,
    num_epochs=10,
    final_learning_rate=0.05,
    patience=3,
  )
  return config
