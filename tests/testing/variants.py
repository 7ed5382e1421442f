"""Systems and their options, at a width that compiles fast."""

import jax
import ml_collections
import numpy as np

from dynllm_jax import config as config_lib

_OPTIONS = {
  'linear': {'projection': 'linear'},
  'no projection': {'projection': 'none'},
  'log projection': {'projection': 'log_interval'},
  'index': {'distill.order': 'index'},
  'mask': {'distill.order': 'mask'},
  'sigmoid': {'distill.order': 'mask', 'distill.gate': 'sigmoid'},
  'no distillation': {'distill.order': 'none'},
  'blend': {'fusion.mode': 'blend'},
  'residual': {'fusion.mode': 'residual'},
  'on tgn': {'network': 'tgn', 'fusion.mode': 'added'},
  'on tgn, merged': {'network': 'tgn', 'event_features': True},
  'on tgn, no facets': {
    'network': 'tgn',
    'fusion.mode': 'added',
    'facets': (),
  },
  'deep fusion': {'fusion.num_layers': 2},
  'two layers': {'num_layers': 2},
  'three layers': {'num_layers': 3},
  'own layers': {'num_layers': 2, 'shared_layers': False},
  'ties each': {'update_ties': 'each'},
  'event features': {'event_features': True},
  'ids': {'item_id_embedding': True},
  'ids alone': {'item_id_embedding': True, 'item_text': False},
  'no item text': {'item_text': False},
  'no memory': {'memory': False},
  'no neighborhood': {'neighborhood': False},
  'no facets': {'facets': ()},
  **{
    f'without {name}': {
      'facets': tuple(f for f in ('crd', 'int', 'ctg', 'brd') if f != name)
    }
    for name in ('crd', 'int', 'ctg', 'brd')
  },
  'copy': {'copy_term': True},
  'walk': {'walk_term': True},
  'text': {'text_term': True},
  'counts': {'count_terms': True},
  'margin': {'train.loss': 'margin'},
  'softmax': {'train.loss': 'softmax', 'train.num_negatives': 5},
  'popular negatives': {
    'train.negatives': 'popularity',
    'train.num_negatives': 3,
  },
  'sold negatives': {'train.negatives': 'sold', 'train.num_negatives': 3},
  'regularized': {'train.regularization': 0.01},
}

# Of the temporal rivals; an option that a system does not have is left out.
_RIVALS = ('tgn', 'jodie', 'dyrep', 'dynshare', 'dmf')
_RIVAL_OPTIONS = {
  'text': {'item_text': True, 'dropout': 0.1},
  'text and ids': {'item_text': True, 'item_id_embedding': True},
  'event features': {'event_features': True},
  'ties each': {'update_ties': 'each'},
  'two layers': {'num_layers': 2},
}

# By name: the config argument and the fields that differ.
VARIANTS = {
  **{name: (name, {}) for name in config_lib.system_names()},
  'dynllm+text+counts': (
    'dynllm+text+counts',
    {
      'train.loss': 'softmax',
      'train.negatives': 'batch',
      'network': 'tgn',
      'fusion.mode': 'added',
      'count_successors': 0,  # a table
    },
  ),
  'sasrec+walk': ('sasrec+walk', {'train.loss': 'softmax'}),
  'sasrec, heads': ('sasrec', {'num_heads': 2}),
  'mf, softmax': ('mf', {'train.loss': 'softmax'}),
  **{
    f'dynllm, {name}': ('dynllm', fields) for name, fields in _OPTIONS.items()
  },
  **{
    f'{system}+text': (f'{system}+text', {'train.loss': 'softmax'})
    for system in _RIVALS
  },
  **{
    f'{system}, {name}': (system, fields)
    for system in _RIVALS
    for name, fields in _RIVAL_OPTIONS.items()
    if set(fields) <= set(config_lib.default(system).model)
  },
}
VARIANTS.update(
  {
    'gcn, item text': ('gcn', {'item_text': True, 'num_layers': 2}),
    'gat, item text': ('gat', {'item_text': True, 'num_layers': 2}),
    'graphsage, item text': ('graphsage', {'item_text': True}),
    'graphsage, plain': ('graphsage', {'normalize': False, 'num_layers': 2}),
    'ngcf, plain': ('ngcf', {'normalize': False, 'num_layers': 2}),
    'lightgcn, softmax': (
      'lightgcn',
      {'train.loss': 'softmax', 'train.num_negatives': 5},
    ),
  }
)
# Each system once; the others run with --all-combinations. HSTU differs from
# eSASRec in its layers alone, which have a test of their own.
MAIN = [
  *(name for name in config_lib.system_names() if name != 'hstu'),
  'dynllm+text+counts',
]
# One system of each kind: with a memory, over a graph that does not change, of
# factors alone, of sequences, of counts.
ONE_OF_EACH_KIND = ['tgn', 'lightgcn', 'mf', 'sasrec', 'transitions']


def chosen(config) -> list[str]:
  """The variants that a run of the tests asks for by its options."""
  if config.getoption('all_combinations'):
    return list(VARIANTS)
  return ONE_OF_EACH_KIND if config.getoption('quick') else MAIN


def tiny_config(variant: str) -> ml_collections.ConfigDict:
  """The configuration of a variant, of a width of 8."""
  arg, fields = VARIANTS[variant]
  config = config_lib.default(arg)
  config_lib.set_known(
    config.model,
    dim=8,
    time_dim=6,
    num_neighbors=3,
    num_layers=1,
    num_blocks=1,
    max_length=4,
    copy_neighbors=4,
    walk_fanout=(3, 2, 2),
    text_neighbors=4,
    count_depth=3,
    count_successors=8,
    distill__top_r=5,
  )
  config.train.batch_size = config.eval.batch_size = 16
  config.train.learning_rate = 0.01
  config.train.chunk = 4
  config.eval.ks = (3, 5)
  for path, value in fields.items():
    part = config if path.startswith('train.') else config.model
    *folders, field = path.removeprefix('model.').split('.')
    for folder in folders:
      part = part[folder]
    part[field] = value
  return config


def assert_trees_equal(actual, expected):
  """Bit for bit, leaf by leaf, random keys included."""

  def plain(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(plain(a), plain(b)),
    actual,
    expected,
  )
