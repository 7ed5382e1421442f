r"""How the choice of single settings moves DynLLM's figures.

    python -m experiments.sensitivity \
        --logs=amazon_beauty=interactions.csv,items.csv
"""

import pathlib
import sys

from absl import app
from absl import flags
import ml_collections

from dynllm_jax.types import InputError
from experiments import result_rows
from experiments import studies

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEM = flags.DEFINE_string('system', 'dynllm+text', 'What is varied.')
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Epochs of each run at most.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of each run.')
_FIELDS = flags.DEFINE_list('fields', [], 'Fields to vary; default: all.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/sensitivity', 'Where run folders are kept.'
)

VALUES = {
  'model.distill.top_r': (20, 80, 128),
  'model.num_neighbors': (3, 20, 40),
  'model.num_layers': (1, 2),
  'model.dim': (64, 128, 256),
  'facets.window_days': (30.0, 90.0, 180.0),
  'train.batch_size': (1024, 2048),
  'train.learning_rate': (1e-3, 3e-3),
}


def changes(field: str, config: ml_collections.ConfigDict) -> studies.Changes:
  """The configuration first, then each value of a field that it can have.

  Args:
    field: of VALUES.
    config: a value that is its own is the first run, and is not run twice.
  """
  found = {'as configured': {}}
  for value in VALUES[field]:
    if field == 'model.distill.top_r' and value > config.model.dim:
      continue
    fields = {field: value}
    if field == 'model.dim':  # r stays the same share of d, 80 of 128
      fields['model.distill.top_r'] = value * 80 // 128
    found[f'{field} = {value}'] = studies.differing(fields, config)
  return found


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  try:
    for field in _FIELDS.value:
      if field not in VALUES:
        raise InputError(f'--fields: {field!r}; allowed: {", ".join(VALUES)}')
    for text in _LOGS.value:
      log = result_rows.parse_log('sensitivity', text)
      config = log.config(_SYSTEM.value)
      if not config.model.name == 'dynllm':
        raise InputError(
          f'--system: {_SYSTEM.value!r} lacks fields that are varied; '
          'allowed: dynllm and its variants'
        )
      everything = {}
      for field in _FIELDS.value or VALUES:
        everything |= changes(field, config)
      records = studies.run(
        log,
        _SYSTEM.value,
        everything,
        _EPOCHS.value,
        _SEED.value,
        pathlib.Path(_WORKDIR.value),
      )
      studies.write_page(log, 'Sensitivity', _EPOCHS.value, records)
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
