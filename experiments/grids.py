"""The grid that tuning chooses from, and the budget of a run.

Every learned system has the same four points and the same budget, so that no
system is tuned for longer than another (experiments/overall.py).
"""

import itertools
from typing import Any

from dynllm_jax import config as config_lib

Fields = tuple[tuple[str, Any], ...]  # names and values, of the configuration

GRID_EPOCHS = 2
MAX_EPOCHS = 15
MAX_SECONDS = 900
PATIENCE = 3
VALIDATION_EVENTS = 10_000

_LEARNING_RATES = (1e-3, 3e-3)
# SPEC 3.9: the paper's loss, and what the per-log configs use.
_LOSSES = (
  (('train.loss', 'bpr'), ('train.num_negatives', 1)),
  (('train.loss', 'softmax'), ('train.num_negatives', 512)),
)
# Tuning and training look at the same fixed sample of validation events.
_COMMON: Fields = (
  ('eval.validation_events', VALIDATION_EVENTS),
  ('eval.compare', '()'),
)


def grid() -> list[Fields]:
  """The points of a learned system's grid, as fields of the configuration."""
  return [
    (('train.learning_rate', rate), *loss)
    for rate, loss in itertools.product(_LEARNING_RATES, _LOSSES)
  ]


def tuning_fields(point: Fields) -> Fields:
  """The fields of a short run that is judged by validation alone."""
  return (
    *point,
    *_COMMON,
    ('train.num_epochs', GRID_EPOCHS),
    ('eval.test', False),
  )


def final_fields(point: Fields, epoch_seconds: float) -> Fields:
  """The fields of the run that is tested.

  Args:
    point: of the grid.
    epoch_seconds: what one epoch and its validation took in tuning.

  Returns:
    The fields. Epochs are as many as fit into MAX_SECONDS, from GRID_EPOCHS to
    MAX_EPOCHS.
  """
  epochs = max(GRID_EPOCHS, min(MAX_EPOCHS, int(MAX_SECONDS / epoch_seconds)))
  return (
    *point,
    *_COMMON,
    ('train.num_epochs', epochs),
    ('train.patience', PATIENCE),
  )


def is_learned(system: str) -> bool:
  """Whether a system (`name` or `name+variant`) is trained at all."""
  config = config_lib.default(system)
  module = config_lib.system_module(config.model.name)
  return module.build(config.model).feed != 'none'


def all_systems() -> list[str]:
  """Every system, each followed by its variants."""
  names = []
  for name in config_lib.system_names():
    variants = config_lib.variants_of(config_lib.default(name).model)
    names += [name, *(f'{name}+{variant}' for variant in variants)]
  return names
