"""Content-based scores against a plain reading, event by event."""

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError
from tests.testing import logs
from tests.testing import replays

DEPTH, DAY = 4, 86_400


def unit(vector):
  length = np.linalg.norm(vector)
  return vector / length if length else vector


def test_scores_equal_a_plain_reading():
  config = config_lib.default('content').model
  config.update({'depth': DEPTH, 'popularity_weight': 0.01})
  system = config_lib.system_module('content').build(config)
  log = logs.random_log(
    5, num_users=5, num_items=9, num_events=70, num_times=25
  )
  inputs = logs.random_inputs(log, padding=256)
  text = np.array(inputs.item_text)
  text[3] = 0  # an item without a text
  inputs = inputs.replace(item_text=text)
  params, memory = system.init(None, inputs, 1)
  assert params == {}
  found = replays.all_scores(system, params, memory, inputs, log)
  vectors = [unit(row) for row in text.astype(float)]
  new_users = 0
  for k, (user, time) in enumerate(zip(log.users, log.times)):
    before = log.times < time
    past = log.items[before & (log.users == user)][::-1][:DEPTH]
    new_users += not len(past)
    profile = unit(sum((vectors[item] for item in past), np.zeros(5)))
    recent = np.zeros(log.num_items + 1)
    for item, then in zip(log.items[before], log.times[before]):
      recent[item] += 0.5 ** ((time - then) / DAY / 30)
    expected = [
      profile @ vectors[item] + 0.01 * recent[item]
      for item in range(1, log.num_items + 1)
    ]
    np.testing.assert_allclose(found[k], expected, atol=1e-5)
  assert 0 < new_users < 20


def test_a_wrong_value_is_named():
  config = config_lib.default('content').model
  config.depth = 0
  with pytest.raises(InputError, match='config.model.depth: 0.*above 0'):
    config_lib.system_module('content').build(config)
