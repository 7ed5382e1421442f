"""Defaults, and which values the configuration itself refuses."""

import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('data.min_user_items', None, 'config.data.min_user_items: it has no'),
    ('mesh', None, 'config.mesh.data: it has no value'),
    ('model.name', None, 'unknown system None'),
    ('model.name', 'dynllm', "has no 'distill'.*--config=FILE:dynllm"),
    ('model.name', 'popularity', "has the 'copy_neighbors'.*--config=FILE:pop"),
    ('eval.compare', 1, 'config.eval.compare: 1 is not allowed'),
    ('eval.compare', (1,), 'config.eval.compare'),
    ('seed', 2**64, 'config.seed'),
    ('seed', -1, 'config.seed'),
  ],
)
def test_values_that_no_reader_could_use(field, value, words):
  config = config_lib.default('tgn')
  config_lib.check_values(config)
  config.unlock()
  *above, name = field.split('.')
  section = config[above[0]] if above else config
  with section.ignore_type():
    section[name] = value
  with pytest.raises(InputError, match=words):
    config_lib.check_values(config)


def test_a_field_that_is_gone_is_named():
  config = config_lib.default('tgn')
  config.unlock()
  del config.train['loss']
  with pytest.raises(InputError, match='config.train.loss: it has no value'):
    config_lib.check_values(config)
