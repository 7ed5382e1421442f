"""The configuration: defaults, the argument after the colon, checks.

A config file says only what differs from `default()`:

    def get_config(arg=''):
      config = default(arg)
      config.data.source = 'online_retail'
      return config
"""

from collections.abc import Iterator
import json
import operator
import types
from typing import Any

import ml_collections

from dynllm_jax import checks
from dynllm_jax import plugins
from dynllm_jax.checks import Rule
from dynllm_jax.types import InputError

# Terms of a temporal system's score, by variant; each has those of the former.
VARIANTS = {
  'walk': ('copy_term', 'walk_term'),  # SPEC 3.11
  'text': ('copy_term', 'walk_term', 'text_term'),  # layers/text_term.py
}


class _Path(str):
  """A path that answers a call like the mapping's method it hides."""

  pairs = ()

  def __call__(self):
    return self.pairs


class DataConfig(ml_collections.ConfigDict):
  """`config.data`; its field `items` hides the mapping's method of that name.

  The field's value can still be called as the method.
  """

  @property
  def items(self) -> str:
    path = _Path(self['items'])
    path.pairs = super().items()
    return path

  def __setattr__(self, name: str, value: Any) -> None:
    if name == 'items':
      self['items'] = value
    else:
      super().__setattr__(name, value)

  def __setitem__(self, name: str, value: Any) -> None:
    if name.endswith('_column') and isinstance(value, int):
      value = str(value)  # a position
    super().__setitem__(name, value)


def default(arg: str = '') -> ml_collections.ConfigDict:
  """All fields with their defaults.

  Args:
    arg: the config argument, `<system>` or `<system>+<variant>`, empty for
      `dynllm`; a variant switches on terms of the score (VARIANTS).

  Returns:
    A locked config; `config.model` holds the fields of the chosen system.

  Raises:
    InputError: if there is no such system.
  """
  name, _, variant = (arg or 'dynllm').partition('+')
  config = ml_collections.ConfigDict(
    {
      'seed': 0,
      'data': DataConfig(
        {
          # The file name of a source in dynllm_jax/datasets.
          'source': 'event_log',
          'events': '',  # path of the event log
          'items': '',  # path of the item table, '' without one
          # Column names, or positions (from 0).
          'user_column': 'user_id',
          'item_column': 'item_id',
          'time_column': 'timestamp',
          'title_column': 'title',
          'category_column': 'category',
          'brand_column': 'brand',
          # Of the item table's ids, where its name is another; '' where not.
          'items_item_column': '',
          'header': True,
          # Of the item table, where it is otherwise; None where not.
          'items_header': ml_collections.config_dict.placeholder(bool),
          # '': of comma, tab, semicolon and bar what the first line has.
          'delimiter': '',
          # Whether double quotes enclose values of text files: double, none;
          # auto is double, but no value may span lines of tab-separated files.
          'quoting': 'auto',
          # Rows to keep, {'column': 'value'}; None for all.
          'where': ml_collections.config_dict.placeholder(object),
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
        }
      ),
      'facets': {
        'window_days': 30.0,
        # Embeddings beyond this stay on the host, and go to the device as a
        # chunk of batches needs them.
        'device_gib': 4.0,
        'writer': {
          'name': 'rules',  # rules, flax, openai
          # Of a language model ("flax", "openai"):
          'model': '',  # hub name or directory; the endpoint's name of it
          'max_input_tokens': 1024,  # the oldest purchases give way
          'max_output_tokens': 256,
          'temperature': 0.0,  # 0: greedy
          'seed': 0,
          'max_attempts': 3,  # for an answer that can be read
          'max_failure_rate': 0.05,  # of the prompts; more stop the run
          'tokens_per_s': 0.0,  # for --dry_run; 0: as last measured
          # Of "flax":
          'dtype': 'float32',  # or bfloat16
          'batch_size': 16,  # prompts generated together
          # Of "openai"; the key is read from OPENAI_API_KEY:
          'base_url': '',  # '': OpenAI; else as http://host:8000/v1
          'concurrency': 8,  # calls at once
          'timeout_s': 120.0,
          'num_retries': 6,  # of a call that got no answer
          'max_calls': 0,  # that one run may make; 0: no limit
          'max_tokens': 0,  # that one run may use, in and out
          'price_per_million_input': 0.0,
          'price_per_million_output': 0.0,
        },
        'encoder': {
          'name': 'hashing',  # a file of dynllm_jax/text: flax, openai
          'dim': 384,  # of hashing
          # A directory, a name on the Hugging Face Hub, or of a server.
          'model': '',
          # Of flax; auto: as the model's directory has it.
          'pooling': 'auto',  # auto, mean, cls, last
          'normalize': 'auto',  # auto, yes, no
          'max_length': 0,  # tokens of a text; 0: the model's
          'batch_tokens': 0,  # padding included; 0: by the device
          # Of openai, in text/endpoint.py; 0 is no limit.
          'base_url': '',
          'concurrency': 8,
          'timeout_s': 60.0,
          'num_retries': 6,
          'max_calls': 0,
          'max_tokens': 0,
        },
      },
      'model': {},
      'train': {
        'num_epochs': 200,
        'batch_size': 2048,  # events; sequences of a system fed by them
        'learning_rate': 1e-3,
        'warmup_steps': 0,
        'final_learning_rate': 1.0,  # share of it left after the last epoch
        'max_gradient_norm': 1.0,
        'max_time_gradient_norm': 0.1,  # of the time encoding's frequencies
        'loss': 'bpr',  # bpr, margin, softmax, bce
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
        # Between epochs a fixed sample of so many validation events is
        # ranked; 0 for all. The report after training ranks all.
        'validation_events': 0,
        'test': True,  # False: train and validate alone, as tuning should
        # Systems without training that are ranked beside this one.
        'compare': (
          'popularity',
          'recent_popularity',
          'repeat',
          'transitions',
          'itemknn',
        ),
      },
      # Devices that share a batch (0: all there are) and node tables, and how
      # long processes wait for each other at the start.
      'mesh': {'data': 0, 'nodes': 1, 'start_timeout_s': 300.0},
    }
  )
  module = system_module(name)
  config.model = module.default_config()
  config.model.name = name
  config.train.update(_own_train(module))
  if variant:
    variants = variants_of(config.model)
    if variant not in variants:
      raise InputError(
        f'config argument {arg!r}: system {name!r} has no variant '
        f'{variant!r}; allowed: {", ".join(variants) or "none"}'
      )
    config.model.update(dict.fromkeys(VARIANTS[variant], True))
  config.lock()
  return config


def variants_of(model: ml_collections.ConfigDict) -> list[str]:
  """The variants whose terms a system's `config.model` has."""
  return [name for name, terms in VARIANTS.items() if set(terms) <= set(model)]


def set_known(model: ml_collections.ConfigDict, **fields: Any) -> None:
  """Sets those fields that the chosen system has.

  Config files serve every system, and a count-based one has none of a
  network's fields.

  Args:
    model: `config.model`.
    **fields: values by name; `top_r` stands for `distill.top_r`.
  """
  for name, value in fields.items():
    part = model.get('distill', {}) if name == 'top_r' else model
    if name in part:
      part[name] = value


def set_train(config: ml_collections.ConfigDict, **fields: Any) -> None:
  """Sets those fields of `config.train` that the system leaves open.

  A system's file may hold a function `default_train()` that returns fields of
  `config.train` which its paper prescribes (a loss, negatives, a batch of
  sequences). They stand before a config file's choice for a log, and behind
  one of the command line.

  Args:
    config: the whole config.
    **fields: values by name.
  """
  own = _own_train(system_module(config.model.name))
  config.train.update(
    {name: value for name, value in fields.items() if name not in own}
  )


def _own_train(module):
  return module.default_train() if hasattr(module, 'default_train') else {}


def system_names() -> list[str]:
  """Names of all systems: files of dynllm_jax/models, and installed ones."""
  return plugins.names(plugins.SYSTEMS)


def system_module(name: str) -> types.ModuleType:
  """The module of a system (plugins.py).

  Raises:
    InputError: if there is no such system.
  """
  return plugins.load(plugins.SYSTEMS, name, 'config argument')


def check_system(config: ml_collections.ConfigDict) -> None:
  """Stops where `model.name` was overridden: its other fields are not its own.

  Raises:
    InputError: if `config.model` holds the fields of another system.
  """
  name = config.model.name
  fields = {'name', *system_module(name).default_config()}
  if set(config.model) != fields:
    raise InputError(
      f'config.model.name: {name!r} does not fit the other fields of '
      f'config.model; a system is chosen as --config=FILE:{name}'
    )


def check_values(config: ml_collections.ConfigDict) -> None:
  """Stops where a field is gone, or has no value but needs one.

  Other values are checked by what reads them.

  Raises:
    InputError: naming the field.
  """
  usual = default().to_dict()
  if isinstance(config.get('model'), ml_collections.ConfigDict):
    name = config.model.get('name')
    usual['model'] = {'name': '', **system_module(name).default_config()}
  for name, value in flatten(usual):
    try:
      found = operator.attrgetter(name)(config)
    except AttributeError:
      found = None
    if found is None and value is not None:
      raise InputError(
        f'config.{name}: it has no value; allowed: one like {value!r}'
      )
  compare = Rule(
    'eval.compare',
    'a tuple of names of systems',
    lambda names: (
      isinstance(names, (tuple, list))
      and all(isinstance(name, str) for name in names)
    ),
  )
  seed = Rule(
    'seed',
    'a whole number from 0 to 2**63 - 1',
    lambda value: isinstance(value, int) and 0 <= value < 2**63,
  )
  checks.check('config', config, [compare, seed])


# Where a host keeps the data; what the data is, its fingerprint says.
_PLACES = ('data.events', 'data.items', 'data.dir')


def leaves(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that all processes share, as JSON values by full name."""
  fields = json.loads(json.dumps(config.to_dict()))
  return {
    f'config.{name}': value
    for name, value in flatten(fields)
    if name not in _PLACES
  }


def flatten(tree: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Each value in nested dicts, with its full name, `a.b`."""
  if isinstance(tree, dict):
    for key, value in tree.items():
      yield from flatten(value, f'{path}.{key}' if path else key)
  else:
    yield path, tree
