"""Which fields a checkpoint holds a run to."""

import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError


def identity(**changes):
  config = config_lib.default('popularity')
  config.update_from_flattened_dict(changes)
  return config_lib.identity(config, 'log')


def check(stored, current):
  config_lib.check_identity(stored, current, 'here', resume=True)


def test_how_fast_or_dear_facets_are_written_is_free():
  name = {'facets.writer.name': 'openai', 'facets.writer.model': 'm'}
  check(identity(**name), identity(**name, **{
      'facets.writer.concurrency': 3, 'facets.writer.max_calls': 9,
      'facets.writer.base_url': 'http://x', 'facets.writer.batch_size': 2,
      'facets.encoder.batch_tokens': 64, 'facets.encoder.base_url': 'http://x',
      'facets.encoder.max_calls': 9}))
  # The rules read none of a language model's fields.
  check(identity(), identity(**{'facets.writer.temperature': 1.0}))


@pytest.mark.parametrize('field, value', [
    ('facets.writer.model', 'n'), ('facets.writer.temperature', 0.5),
    ('facets.writer.max_input_tokens', 9), ('facets.encoder.pooling', 'cls'),
    ('facets.window_days', 1.0)])
def test_what_facets_say_is_not(field, value):
  name = {'facets.writer.name': 'openai', 'facets.writer.model': 'm'}
  with pytest.raises(InputError, match=f'config.{field}: {value!r} differs'):
    check(identity(**name), identity(**{**name, field: value}))
