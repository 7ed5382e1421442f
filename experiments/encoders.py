r"""What the texts' encoder adds: one system, two encoders.

    python -m experiments.encoders --model=DIR \
        --logs=amazon_beauty=interactions.csv,items.csv

DIR is a sentence encoder of Hugging Face transformers; the commands on the
page name it as given here.
"""

import os
import pathlib
import sys

from absl import app
from absl import flags

from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError
from experiments import result_rows
from experiments import studies

_LOGS = flags.DEFINE_multi_string(
  'logs', None, 'NAME or NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_MODEL = flags.DEFINE_string('model', None, 'Directory of the encoder.')
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text', 'Whose texts are encoded.'
)
_EPOCHS = flags.DEFINE_integer('epochs', 3, 'Epochs of each run at most.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of each run.')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/encoders', 'Where run folders are kept.'
)


def changes(model: str) -> studies.Changes:
  """Each encoder with all facets, and with none.

  Args:
    model: directory of the encoder that is compared with hashing.

  Returns:
    The runs, hashing with all facets first.
  """
  encoders = {
    'hashing': {},
    os.path.basename(os.path.normpath(model)): {
      'facets.encoder.name': 'flax',
      'facets.encoder.model': model,
    },
  }
  choices = {'all facets': FACETS, 'no facets': ()}
  return {
    f'{encoder}, {choice}': {**fields, 'model.facets': str(facets)}
    for choice, facets in choices.items()
    for encoder, fields in encoders.items()
  }


def main(argv: list[str]) -> int:
  """Reads the flags, runs what is missing, writes the pages."""
  del argv
  try:
    for text in _LOGS.value:
      log = result_rows.parse_log('encoders', text)
      records = studies.run(
        log,
        _SYSTEM.value,
        changes(_MODEL.value),
        _EPOCHS.value,
        _SEED.value,
        pathlib.Path(_WORKDIR.value),
      )
      studies.write_page(
        log,
        'Encoders',
        _EPOCHS.value,
        records,
        f'The other rows: {records[1]["facets"]["encoder"]}. ',
      )
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  flags.mark_flags_as_required(['logs', 'model'])
  app.run(main)
