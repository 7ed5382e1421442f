"""The shared base: its checks, and what of a table is ever read."""

import re

import ml_collections
import pytest

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax.bases.stream_network import check_fields
from dynllm_jax.types import InputError


@pytest.mark.parametrize(
  'field, value, allowed',
  [
    ('dim', 7, 'an even number'),
    ('time_dim', 0, 'an even number'),
    ('num_heads', 3, 'a divisor of config.model.dim = 128'),
    ('num_layers', 0, '1 or more'),
    ('num_neighbors', 0, '1 or more'),
    ('copy_neighbors', 0, '1 or more'),
    ('text_neighbors', 0, '1 or more'),
    ('count_depth', 0, '1 or more'),
    ('count_successors', -1, '0 or more'),
    ('dropout', 1.0, 'below 1'),
    ('update_ties', 'last', 'mean, each'),
    ('walk_fanout', (10, 8), 'three numbers'),
  ],
)
@pytest.mark.parametrize('system', ['tgn', 'dynllm'])
def test_a_value_that_no_network_could_have_is_named(
  system, field, value, allowed
):
  config = config_lib.default(system).model
  config[field] = value
  build = config_lib.system_module(system).build
  with pytest.raises(InputError, match=f'config.model.{field}: .*{allowed}'):
    build(config)


def test_rules_of_a_part_name_the_part():
  config = ml_collections.ConfigDict(
    {
      'dim': 8,
      'time_dim': 6,
      'dropout': 0.0,
      'copy_neighbors': 1,
      'walk_fanout': (1, 1, 1),
      'part': {'size': 3},
    }
  )
  check_fields(config, [checks.at_least('part.size', 3)])
  with pytest.raises(InputError, match='config.model.part.size: 3 .*4 or more'):
    check_fields(config, [checks.at_least('part.size', 4)])


@pytest.mark.parametrize('system', ['tgn', 'jodie', 'dyrep', 'dynshare', 'dmf'])
def test_variants_set_terms_which_are_off_otherwise(system):
  terms = lambda arg: [
    config_lib.default(arg).model[
      'count_terms' if name == 'count' else f'{name}_term'
    ]
    for name in ('copy', 'walk', 'text', 'count')
  ]
  assert terms(system) == [False, False, False, False]
  assert terms(f'{system}+walk') == [True, True, False, False]
  assert terms(f'{system}+text') == [True, True, True, False]
  assert terms(f'{system}+counts') == [False, False, False, True]
  assert terms(f'{system}+walk+counts') == [True, True, False, True]


@pytest.mark.parametrize(
  'arg, allowed',
  [
    ('mf+walk', 'none'),
    ('sasrec+text', 'walk$'),
    ('tgn+counts+fast', 'walk, text, counts'),
  ],
)
def test_a_variant_that_a_system_lacks_is_named(arg, allowed):
  with pytest.raises(InputError, match=f'{re.escape(arg)}.*allowed: {allowed}'):
    config_lib.default(arg)
