r"""How single settings change DynLLM's figures.

    python -m experiments.sensitivity \
        --logs=amazon_beauty=interactions.csv,items.csv
"""

import pathlib

from absl import app
from absl import flags
import ml_collections

from dynllm_jax.types import InputError
from experiments import exit_status
from experiments import result_rows
from experiments import studies

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text', 'Whose settings are varied.'
)
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Most epochs of a run.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of each run.')
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
  """The configuration as it is, then with each other value of a field.

  Args:
    field: of VALUES.
    config: the configuration. A value that it already has changes nothing, so
      that run is the first one and is not run twice.
  """
  found = {'as configured': {}}
  for value in VALUES[field]:
    if field == 'model.distill.top_r' and value > config.model.dim:
      continue  # no more dimensions than there are can be kept
    fields = {field: value}
    if field == 'model.dim':  # r stays the same share of d, 80 of 128
      fields['model.distill.top_r'] = value * 80 // 128
    found[f'{field} = {value}'] = studies.differing(fields, config)
  return found


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if a flag is wrong, before any run of its log.
  """
  for field in _FIELDS.value:
    if field not in VALUES:
      raise InputError(f'--fields: {field!r}; allowed: {", ".join(VALUES)}')
  study = studies.Study(
    'Sensitivity',
    _SYSTEM.value,
    epochs=_EPOCHS.value,
    seed=_SEED.value,
    workdir=pathlib.Path(_WORKDIR.value),
  )

  for text in _LOGS.value:
    log = result_rows.parse_log('sensitivity', text)
    config = log.config(study.system)
    if config.model.name != 'dynllm':
      raise InputError(
        f'--system: {study.system!r} lacks fields that are varied; '
        'allowed: dynllm and its variants'
      )
    everything = {}
    for field in _FIELDS.value or VALUES:
      everything |= changes(field, config)
    studies.write_page(log, study, studies.run(log, study, everything))


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
