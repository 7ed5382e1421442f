"""The grids that tuning chooses from, and the budgets of runs.

A system is tuned for what it is: the systems of a kind have the same points and
the same budget, in updates of the parameters, and every kind has as many
points (experiments/overall.py). An epoch is no measure: a batch of sequences
has dozens of times the events of another, so that two epochs are 45 updates for
one system and 500 for the next.
"""

import itertools
import math
from typing import Any
from typing import NamedTuple

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.engine import feeds
from dynllm_jax.types import System
from experiments.result_rows import Fields
from experiments.result_rows import Log

MAX_SECONDS = 900  # of a tested run's training
MIN_EPOCHS = 2
PATIENCE = 3  # epochs, if they are long
VALIDATION_EVENTS = 10_000


class Budget(NamedTuple):
  """Updates of the parameters.

  Attributes:
    tuning: of a point of the grid.
    tested: of the run that is tested, at most.
    patience: of training without a better validation; no less than PATIENCE
      epochs.
  """

  tuning: int
  tested: int
  patience: int


_RATES = tuple({'train.learning_rate': rate} for rate in (1e-3, 3e-3))
# SPEC 3.9: the paper's loss, and what the per-log configs use.
_PAIRWISE = {'train.loss': 'bpr', 'train.num_negatives': 1}
_SOFTMAX = {'train.loss': 'softmax', 'train.num_negatives': 512}
# A batch of sequences as SASRec's paper has it, and a small one, which takes
# many more steps and needs less dropout.
_BATCHES = (
  {'train.batch_size': 128},
  {'train.batch_size': 32, 'model.dropout': 0.2},
)
_SEQUENCE_LOSSES = (
  {'train.loss': 'bce', 'train.num_negatives': 1},
  {'train.loss': 'softmax', 'train.num_negatives': 256},
)

_Parts = tuple[tuple[dict[str, Any], ...], ...]  # a point has one of each

# By kind (`kind_of`). An update that propagates over a graph or through a
# memory costs many of one of factors.
_PARTS: dict[str, _Parts] = {
  'stream': (_RATES, (_PAIRWISE, _SOFTMAX)),
  'graph': (_RATES, (_PAIRWISE, _SOFTMAX)),
  'factors': (_RATES, (_PAIRWISE, _SOFTMAX)),
  'sequences': (_SEQUENCE_LOSSES, _BATCHES),
}
_BUDGETS = {
  'stream': Budget(500, 4_000, 500),
  'graph': Budget(500, 4_000, 500),
  'factors': Budget(4_000, 20_000, 2_000),
  'sequences': Budget(2_000, 20_000, 2_000),
}
# Of those that count: what their papers tune. The floors have no point, since
# SPEC 6 fixes all of them.
_COUNTING: dict[str, _Parts] = {
  'ease': (
    tuple({'model.penalty': value} for value in (30.0, 100.0, 300.0, 1000.0)),
  ),
  'stan': (
    tuple({'model.neighbor_decay_days': days} for days in (20.0, 200.0)),
    tuple({'model.position_decay': places} for places in (1.0, 3.54)),
  ),
  'upcf': (
    tuple({'model.recency': baskets} for baskets in (5, 100)),
    tuple({'model.locality': power} for power in (1.0, 10.0)),
  ),
}

# Whatever is tuned and trained looks at the same sample of validation events.
_COMMON: Fields = (
  ('eval.validation_events', VALIDATION_EVENTS),
  ('eval.compare', '()'),
)


def system_of(name: str) -> System:
  """A system (`name` or `name+variant`) at its defaults."""
  config = config_lib.default(name)
  return config_lib.system_module(config.model.name).build(config.model)


def kind_of(name: str) -> str:
  """What a system is tuned as: stream, graph, factors, sequences, none."""
  system = system_of(name)
  if system.feed == 'shuffled':
    return 'graph' if system.reads_train_graph else 'factors'
  return system.feed


def grid(system: str) -> list[Fields]:
  """The points of a system's grid, as fields of the configuration.

  Args:
    system: its name, with or without a variant.

  Returns:
    The points; none where nothing is tuned, as for the floors.
  """
  kind = kind_of(system)
  parts = _COUNTING.get(system, ()) if kind == 'none' else _PARTS[kind]
  if not parts:
    return []
  return [
    tuple(itertools.chain.from_iterable(part.items() for part in point))
    for point in itertools.product(*parts)
  ]


def updates_per_epoch(log: Log, system: str, point: Fields) -> int:
  """Steps that one epoch of a system takes on a log.

  Args:
    log: the log.
    system: its name, with or without a variant.
    point: of the grid; its batch size counts.

  Raises:
    InputError: for whatever is wrong with the log.
  """
  config = log.config_with_data(system)
  batch = dict(point).get('train.batch_size', config.train.batch_size)
  events = loading.load(config.data, lambda line: None)
  return len(feeds.training_plan(system_of(system), events, batch).batches)


def tuning_fields(
  system: str, point: Fields, per_epoch: int, again: bool = False
) -> Fields:
  """The fields of a short run that is judged by validation alone.

  Args:
    system: its name, with or without a variant.
    point: of its grid.
    per_epoch: of `updates_per_epoch`.
    again: whether the point is tried again, with twice the updates and on all
      validation events.
  """
  fields = dict((*point, *_COMMON))
  if (kind := kind_of(system)) != 'none':
    epochs = _epochs(_BUDGETS[kind].tuning * (1 + again), per_epoch)
    fields.update({'train.num_epochs': epochs, 'train.patience': epochs})
  if again:
    fields['eval.validation_events'] = 0
  return (*fields.items(), ('eval.test', False))


def within_an_error(tried: list[dict[str, Any]]) -> list[Fields]:
  """The points that are less than a standard error below the best.

  Args:
    tried: records of points: `point`, and `validation_recall@10` unless the
      point has `failed`.
  """
  trained = [p for p in tried if 'failed' not in p]
  best = max(p['validation_recall@10'] for p in trained)
  error = (best * (1 - best) / VALIDATION_EVENTS) ** 0.5
  return [
    p['point'] for p in trained if p['validation_recall@10'] >= best - error
  ]


def final_fields(
  system: str, point: Fields, per_epoch: int, epoch_seconds: float
) -> Fields:
  """The fields of the run that is tested.

  Args:
    system: its name, with or without a variant.
    point: of its grid.
    per_epoch: of `updates_per_epoch`.
    epoch_seconds: what one epoch and its validation took in tuning.

  Returns:
    The fields. Epochs are as many as the budget has updates, if they fit into
    MAX_SECONDS.
  """
  if (kind := kind_of(system)) == 'none':
    return (*point, *_COMMON)
  budget = _BUDGETS[kind]
  longest = max(MIN_EPOCHS, int(MAX_SECONDS / epoch_seconds))
  return (
    *point,
    *_COMMON,
    ('train.num_epochs', min(longest, _epochs(budget.tested, per_epoch))),
    ('train.patience', max(PATIENCE, _epochs(budget.patience, per_epoch))),
  )


def _epochs(updates: int, per_epoch: int) -> int:
  """Epochs that have so many updates."""
  return max(MIN_EPOCHS, math.ceil(updates / per_epoch))


def described() -> str:
  """How systems are tuned, in words, for pages."""
  budgets = ', '.join(
    f'{kind} {budget.tuning:,} and {budget.tested:,}'
    for kind, budget in _BUDGETS.items()
  )
  return (
    'A system was tuned on the four points of the grid of its kind, by '
    f'validation Recall@10 on a fixed sample of {VALIDATION_EVENTS:,} events; '
    'points that a standard error does not tell apart were tried again, with '
    'twice the updates and on all validation events. Updates of a point, and '
    f'of the tested run at most: {budgets}. A tested run trains for '
    f'{MAX_SECONDS} s at most, and is tested once.'
  )


def all_systems() -> list[str]:
  """Every system, each followed by its variants, one with all terms last."""
  names = []
  for name in config_lib.system_names():
    variants = config_lib.variants_of(config_lib.default(name).model)
    names += [name, *(f'{name}+{variant}' for variant in variants)]
    if {'text', 'counts'} <= set(variants):
      names.append(f'{name}+text+counts')
  return names
