r"""A sequence system under leave-one-out, as most papers have tested them.

    python -m experiments.leave_one_out --system=esasrec --dropout=.5 \
        --logs=amazon_beauty=interactions.csv,items.csv

Of each user with three events or more the last is tested and the one before it
is validated; all others are trained on. So training has seen what others did
after a test event, which is why no figure of this protocol stands in a table of
this project. It checks a rival against its paper: on Beauty at 5 / 5, SASRec
with a softmax over sampled negatives is reported at NDCG@10 .053, HSTU at .044.

The order within a user is all that is left of the times: an event's time is its
number, in days. What a user took before is ranked and left out, one line each.
"""

import json

from absl import app
from absl import flags

from dynllm_jax import config as config_lib
from dynllm_jax import progress
from dynllm_jax.datasets import loading
from experiments import exit_status
from experiments import last_events
from experiments import result_rows

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_SYSTEM = flags.DEFINE_string('system', 'esasrec', 'Fed with sequences.')
_EPOCHS = flags.DEFINE_integer('epochs', 60, 'Epochs at most.')
_PATIENCE = flags.DEFINE_integer(
  'patience', 5, 'Epochs without a better validation NDCG@10 that end it.'
)
_BATCH = flags.DEFINE_integer(
  'batch_size', 0, "Sequences of a batch; 0 for the system's own."
)
_DROPOUT = flags.DEFINE_float(
  'dropout', None, "The network's dropout; the system's own if not given."
)
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
    named = result_rows.parse_log('leave_one_out', text)
    config = named.config_with_data(_SYSTEM.value, _DATA.value)
    config.train.num_epochs, config.seed = _EPOCHS.value, _SEED.value
    config.train.batch_size = _BATCH.value or config.train.batch_size
    if _DROPOUT.value is not None:
      config_lib.set_known(config.model, dropout=_DROPOUT.value)
    log = last_events.leave_one_out(loading.load(config.data, progress.say))

    trial = last_events.Trial(config, log)
    best = trial.fit(_PATIENCE.value)
    for filter_seen in (False, True):
      figures = trial.rank(best, 'test', filter_seen)
      line = {'system': _SYSTEM.value, 'log': named.name, 'seed': config.seed}
      progress.say(
        json.dumps({**line, 'filter_seen': filter_seen, 'test': figures})
      )


if __name__ == '__main__':
  flags.mark_flag_as_required('logs')
  app.run(main)
