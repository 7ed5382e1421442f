r"""Writes facets on a machine that has a model and an accelerator, and no log.

    python -m experiments.remote_facets --stage=prepare --bundle=bundle \
        --log=event_log=interactions.csv,items.csv --model=smollm2
    python -m experiments.remote_facets --stage=write --bundle=bundle \
        --model=smollm2 --batch=512          # there
    python -m experiments.remote_facets --stage=keep --bundle=bundle \
        --log=event_log=interactions.csv,items.csv --model=smollm2

`prepare` puts all prompts that have no answer yet into a file of the folder.
`write` needs nothing but that folder and the model; answers are on the disk
batch by batch, and a second call goes on where the first was stopped. `keep`
puts them where the writer `flax` looks for answers, so that a run with the same
fields has nothing left to write. The model is the same by the hash of its
files, wherever it lies.
"""

import pathlib
from typing import Any

from absl import app
from absl import flags

from dynllm_jax import config as config_lib
from dynllm_jax.facets import windows
from dynllm_jax.progress import say
from dynllm_jax.types import InputError
from experiments import exit_status
from experiments import facet_bundle

_STAGE = flags.DEFINE_enum(
  'stage', None, ['prepare', 'write', 'keep'], 'What is done.'
)
_BUNDLE = flags.DEFINE_string('bundle', None, 'The folder that travels.')
_MODEL = flags.DEFINE_string('model', None, "The language model's folder.")
LOG = flags.DEFINE_string(
  'log', '', 'NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
DAYS = flags.DEFINE_float('window_days', 90.0, 'Length of a window.')
MIN_ITEMS = flags.DEFINE_integer(
  'min_user_items', 0, "data.min_user_items; 0 for the config file's."
)
_WINDOWS = flags.DEFINE_integer(
  'windows', 0, 'So many of them, a seeded sample; 0 for all.'
)
_VERSION = flags.DEFINE_integer('prompt_version', 2, 'facets.writer.')
_TOKENS = flags.DEFINE_integer('max_output_tokens', 96, 'facets.writer.')
_DTYPE = flags.DEFINE_string('dtype', 'bfloat16', 'facets.writer.')
_BATCH = flags.DEFINE_integer('batch', 512, 'Prompts at once, in `write`.')
_SECONDS = flags.DEFINE_float(
  'seconds', 0.0, '`write` begins no batch after so many; 0 for no limit.'
)


def main(argv: list[str]) -> int:
  """Does a stage."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  bundle = pathlib.Path(_BUNDLE.value)
  if _STAGE.value == 'write':
    fields = config_lib.default().facets.writer
    fields.model, fields.batch_size = _MODEL.value, _BATCH.value
    facet_bundle.answer(bundle, fields, say, _SECONDS.value)
  elif _STAGE.value == 'prepare':
    facet_bundle.prepare(bundle, _source(), say)
  else:
    facet_bundle.keep(bundle, _source(), say)


def data_fields() -> dict[str, Any]:
  """The fields of `config` that the flags set for the log."""
  least = MIN_ITEMS.value
  return {'data.min_user_items': least} if least else {}


def writer_fields() -> dict[str, Any]:
  """The fields of `config.facets.writer` that the flags set."""
  return {
    'name': 'flax',
    'model': _MODEL.value,
    'form': 'guided',
    'prompt_version': _VERSION.value,
    'max_output_tokens': _TOKENS.value,
    'dtype': _DTYPE.value,
  }


def _source() -> facet_bundle.Source:
  """Reads the log that the flags name."""
  # The machine that writes has neither the log nor what reads it.
  from dynllm_jax.datasets import loading
  from experiments import result_rows

  if not LOG.value:
    raise InputError('--log: prepare and keep need it; allowed: NAME=FILES')
  place = result_rows.parse_log('claim', LOG.value)
  config = place.config('')
  config.data.events, config.data['items'] = place.events, place.items
  config.update_from_flattened_dict(data_fields())
  config.facets.writer.update(writer_fields())
  log = loading.load(config.data, say)
  profiles = windows.profiles(log, windows.window_seconds(DAYS.value))
  return facet_bundle.Source(
    config.facets.writer,
    log,
    facet_bundle.sampled(profiles, _WINDOWS.value or len(profiles)),
    facet_bundle.store_folder(config.data),
  )


if __name__ == '__main__':
  flags.mark_flags_as_required(['stage', 'bundle', 'model'])
  app.run(main)
