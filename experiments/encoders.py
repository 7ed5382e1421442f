r"""What another encoder of texts adds: one system, two encoders.

    python -m experiments.encoders --model=DIR \
        --logs=amazon_beauty=interactions.csv,items.csv

DIR is a sentence encoder of Hugging Face transformers; the commands on the
page name it as it is given here.
"""

import pathlib

from absl import app
from absl import flags

from experiments import exit_status
from experiments import result_rows
from experiments import studies

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_MODEL = flags.DEFINE_string('model', None, 'Directory of the encoder.')
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text', 'Which system reads the texts.'
)
_EPOCHS = flags.DEFINE_integer('epochs', 3, 'Most epochs of a run.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of each run.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/encoders', 'Where run folders are kept.'
)


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  study = studies.Study(
    'Encoders',
    _SYSTEM.value,
    epochs=_EPOCHS.value,
    seed=_SEED.value,
    workdir=pathlib.Path(_WORKDIR.value),
  )

  def work() -> None:
    for text in _LOGS.value:
      log = result_rows.parse_log('encoders', text)
      records = studies.run(log, study, studies.encoder_changes(_MODEL.value))
      note = f'In the other rows: {records[1]["facets"]["encoder"]}. '
      studies.write_page(log, study, records, note)

  return exit_status.exit_status(work)


if __name__ == '__main__':
  flags.mark_flags_as_required(['logs', 'model'])
  app.run(main)
