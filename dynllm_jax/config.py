"""The configuration: defaults, the argument after the colon, checks.

A config file says only what differs from `default()`:

    def get_config(arg=''):
      config = default(arg)
      config.data.source = 'online_retail'
      return config
"""

import importlib
import pathlib
from typing import Any

import ml_collections

from dynllm_jax.types import InputError


def default(arg: str = '') -> ml_collections.ConfigDict:
  """All fields with their defaults.

  Args:
    arg: the config argument, `<system>` or `<system>+walk`, empty for
      `dynllm`; `+walk` switches on the copy and walk terms of SPEC 3.11.

  Returns:
    A locked config; `config.model` holds the fields of the chosen system.

  Raises:
    InputError: if there is no such system.
  """
  name, _, variant = (arg or 'dynllm').partition('+')
  config = ml_collections.ConfigDict({
      'seed': 0,
      'data': {
          # The file name of a source in dynllm_jax/datasets.
          'source': 'event_log',
          'events': '',  # path of the event log
          'items': '',  # path of the item table, '' without one
          # Column names, or positions (from 0) written as integers.
          'user_column': 'user_id',
          'item_column': 'item_id',
          'time_column': 'timestamp',
          'title_column': 'title',
          'category_column': 'category',
          'brand_column': 'brand',
          'header': True,
          'delimiter': '',  # '' : by file name (.tsv is a tab), else a comma
          'where': ml_collections.ConfigDict(),  # {'column': 'value to keep'}
          'time_unit': 'auto',  # auto, s, ms, us, ns, iso
          'bad_rows': 'error',  # or 'drop'
          'sample_users': 1.0,  # seeded share of the users kept
          'sample_seed': 0,
          'min_user_items': 20,
          'min_item_users': 5,
          'size': 'tmall',  # of a simulated log: tmall, alibaba, demo
          'simulation_seed': 0,
          # Where prepared data sets and facets are kept; '' is
          # $XDG_CACHE_HOME/dynllm_jax or ~/.cache/dynllm_jax.
          'dir': '',
      },
      'facets': {
          'window_days': 30.0,
          'writer': {'name': 'rules'},
          'encoder': {'name': 'hashing', 'model': '', 'dim': 384},
      },
      'model': {},
      'train': {
          'num_epochs': 200,
          'batch_size': 2048,
          'learning_rate': 1e-3,
          'warmup_steps': 0,
          'final_learning_rate': 1.0,  # share of it left after the last epoch
          'max_gradient_norm': 1.0,
          'max_time_gradient_norm': 0.1,  # of the time encoding's frequencies
          'loss': 'bpr',  # bpr, margin, softmax
          'margin': 1.0,
          'num_negatives': 1,  # per event; shared by the batch for softmax
          'negatives': 'uniform',  # uniform, popularity
          'regularization': 0.0,  # lambda of SPEC 3.9
          'patience': 10,
          'chunk': 16,  # batches between two looks at progress
      },
      'eval': {
          'batch_size': 256,
          'ks': (10, 20, 30),
          'candidates': 'all',  # all, future
          'filter_seen': False,
          'block_size': 65_536,  # items scored at once
      },
      'mesh': {'data': 0, 'nodes': 1},  # data=0: all local devices
  })
  config.model = system_module(name).default_config()
  config.model.name = name
  if variant:
    if variant != 'walk' or 'walk' not in config.model:
      raise InputError(
          f'config argument {arg!r}: system {name!r} has no variant '
          f'{variant!r}; only "+walk", of temporal systems, is allowed')
    config.model.copy_term = config.model.walk_term = True
  config.lock()
  return config


def system_names() -> list[str]:
  """Names of all systems: the files in dynllm_jax/models."""
  folder = pathlib.Path(__file__).parent / 'models'
  return sorted(p.stem for p in folder.glob('*.py') if p.stem != '__init__')


def system_module(name: str) -> Any:
  """The module `dynllm_jax.models.<name>`.

  Raises:
    InputError: if there is no such file.
  """
  if name not in system_names():
    raise InputError(
        f'config argument: unknown system {name!r}; '
        f'allowed: {", ".join(system_names())}')
  return importlib.import_module(f'dynllm_jax.models.{name}')
