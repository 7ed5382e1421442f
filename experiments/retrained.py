r"""A static system frozen after training, and trained again now and then.

    python -m experiments.retrained --system=esasrec --epochs=8 --parts=5 \
        --logs=amazon_beauty=interactions.csv,items.csv

One line of JSON for each; what is done is in experiments/retraining.py. The
number of epochs is that of the tuned run's best epoch.
"""

import json

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.datasets import loading
from experiments import exit_status
from experiments import result_rows
from experiments import retraining

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEM = flags.DEFINE_string('system', 'esasrec', 'Static, or of sequences.')
_EPOCHS = flags.DEFINE_integer('epochs', 8, 'Epochs of the first training.')
_MORE = flags.DEFINE_integer('more_epochs', 2, 'Epochs of each later one.')
_PARTS = flags.DEFINE_integer('parts', 5, 'Parts of each split.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the run.')
_DATA = flags.DEFINE_string('data_dir', '', 'config.data.dir.')


def main(argv: list[str]) -> int:
  """Reads the flags, trains and tests on each log."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if a flag or a field is wrong.
  """
  for text in _LOGS.value:
    named = result_rows.parse_log('retrained', text)
    config = named.config_with_data(_SYSTEM.value, _DATA.value)
    config.train.num_epochs, config.seed = _EPOCHS.value, _SEED.value
    log = loading.load(config.data, progress.say)
    for parts, more in ((1, 0), (_PARTS.value, _MORE.value)):
      figures = retraining.rank_in_parts(config, log, parts, more)
      progress.say(
        json.dumps(
          {
            'system': _SYSTEM.value,
            'log': named.name,
            'seed': config.seed,
            'parts': parts,
            'more_epochs': more,
            **figures,
          }
        )
      )


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
