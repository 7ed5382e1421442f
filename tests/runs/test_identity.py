"""Which runs may go on from a checkpoint, and which may only evaluate it."""

import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.facets import facet_bank
from dynllm_jax.runs import identity as identity_lib
from dynllm_jax.types import InputError


@pytest.fixture
def identity(tmp_path):
  """`identity(field=value)`, of a run whose data folder is the test's own."""

  def make(**changes):
    config = config_lib.default('popularity')
    config.update_from_flattened_dict(changes)
    return identity_lib.identity(
      config,
      'log',
      *facet_bank.identities(config.facets, str(tmp_path / 'data')),
    )

  return make


def check(stored, current):
  identity_lib.check(stored, current, 'here', resume=True)


def test_how_fast_or_dear_facets_are_written_is_free(identity):
  name = {'facets.writer.name': 'openai', 'facets.writer.model': 'm'}
  check(
    identity(**name),
    identity(
      **name,
      **{
        'facets.writer.concurrency': 3,
        'facets.writer.max_calls': 9,
        'facets.writer.base_url': 'http://x',
        'facets.writer.batch_size': 2,
        'facets.encoder.batch_tokens': 64,
        'facets.encoder.base_url': 'http://x',
        'facets.encoder.max_calls': 9,
      },
    ),
  )
  # The rules read none of a language model's fields.
  check(identity(), identity(**{'facets.writer.temperature': 1.0}))


@pytest.mark.parametrize(
  'field, value',
  [
    ('facets.writer.model', 'n'),
    ('facets.writer.temperature', 0.5),
    ('facets.writer.max_input_tokens', 9),
    ('facets.encoder.pooling', 'cls'),
    ('facets.window_days', 1.0),
  ],
)
def test_what_facets_say_is_not(identity, field, value):
  name = {'facets.writer.name': 'openai', 'facets.writer.model': 'm'}
  with pytest.raises(InputError, match=f'config.{field}: {value!r} differs'):
    check(identity(**name), identity(**{**name, field: value}))


def test_an_encoder_is_known_by_its_files(identity, tmp_path):
  def encoder(folder, weights):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / 'config.json').write_text('{}')
    (tmp_path / folder / 'model.safetensors').write_bytes(weights)
    return identity(
      **{
        'facets.encoder.name': 'flax',
        'facets.encoder.model': str(tmp_path / folder),
      }
    )

  first = encoder('a', b'1')
  check(first, encoder('b', b'1'))
  with pytest.raises(InputError, match='config.facets.encoder.model: '):
    check(first, encoder('a', b'22'))


def test_an_encoder_from_outside_is_known_by_its_version():
  config = config_lib.default('popularity')

  def identity(version):
    encoder = {'module': 'shop.lengths', 'module_version': version}
    return identity_lib.identity(config, 'log', {}, encoder)

  check(identity(1), identity(1))
  with pytest.raises(InputError, match='encoder.module_version: 2 differs'):
    check(identity(1), identity(2))


def test_an_evaluation_may_differ_where_no_array_depends_on_it(identity):
  def evaluate(**changes):
    identity_lib.check(identity(), identity(**changes), 'here', resume=False)

  evaluate(**{'eval.ks': (5,), 'train.loss': 'bce', 'seed': 3})
  with pytest.raises(InputError, match='config.train.batch_size: 9 differs'):
    evaluate(**{'train.batch_size': 9})
