"""What a checkpoint remembers of its run, and which runs may go on from it."""

import json
from typing import Any

import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError

# Fields, or sections of them, that may differ between a checkpoint and a run
# that goes on from it.
_FREE_TO_RESUME = (
  'facets.device_gib',
  'train.num_epochs',
  'train.patience',
  'train.chunk',
  'eval.block_size',
  'eval.compare',
  'eval.ks',
  'eval.test',
)
# Those that may differ when a checkpoint is only evaluated.
_FREE_TO_EVALUATE = ('facets.device_gib', 'train', 'eval', 'seed')
# The one field of `train` that may never differ: the pending events in the
# checkpoint are arrays of its size.
_NEVER_FREE = 'train.batch_size'
# Those that may differ where only parameters are taken over: all but the model
# and who embeds its texts.
_FREE_TO_START = (
  'facets.device_gib',
  'facets.window_days',
  'facets.writer',
  'train',
  'eval',
  'seed',
  'data_fingerprint',
)

# Fields of an encoder that change no embedding, only what computing one costs.
_COST_OF_ENCODING = (
  'batch_tokens',
  'base_url',
  'concurrency',
  'timeout_s',
  'num_retries',
  'max_calls',
  'max_tokens',
)


def identity(
  config: ml_collections.ConfigDict,
  fingerprint: str,
  writer: dict[str, Any],
  encoder: dict[str, Any],
) -> dict[str, Any]:
  """What a checkpoint remembers of its configuration, as JSON values.

  Args:
    config: the configuration.
    fingerprint: of the prepared log. It stands in for `config.data`, so that
      the files may lie elsewhere.
    writer, encoder: what the facets' texts and embeddings depend on, of
      `facet_bank.identities`: a model's files, not its folder.
  """
  fields = json.loads(json.dumps(config.to_dict()))
  del fields['data'], fields['mesh']
  for field in _COST_OF_ENCODING:
    del fields['facets']['encoder'][field]
  fields['facets']['writer'] = writer
  fields['facets']['encoder'].update(
    {name: encoder.get(name, '') for name in ('model', 'version')}
  )
  # Of an encoder from outside the package also its module's (plugins.version).
  if 'module_version' in encoder:
    fields['facets']['encoder']['module_version'] = encoder['module_version']
  return {**fields, 'data_fingerprint': fingerprint}


def without_newer(
  stored: dict[str, Any], current: dict[str, Any]
) -> dict[str, Any]:
  """What a run folder's own configuration is compared by.

  Fields that have been added since the run have their defaults in it, which
  leave everything as it was.

  Args:
    stored: what `identity` returned for the checkpoint.
    current: what it returns now.

  Returns:
    `current` without fields that `stored` lacks.
  """
  return {
    name: without_newer(stored[name], value)
    if isinstance(value, dict) and isinstance(stored[name], dict)
    else value
    for name, value in current.items()
    if name in stored
  }


def check(stored: dict, current: dict, where: str, resume: bool) -> None:
  """Stops where a checkpoint comes from another configuration.

  Args:
    stored, current: what `identity` returned for the checkpoint, and for now.
    where: the run folder of the checkpoint, for the error.
    resume: whether training goes on from it; it is only evaluated otherwise.

  Raises:
    InputError: naming the first field that differs.
  """
  free = _FREE_TO_RESUME if resume else _FREE_TO_EVALUATE
  _check(stored, current, where, free, _NEVER_FREE)


def check_start(stored: dict, current: dict, where: str) -> None:
  """Stops where parameters cannot be taken over from a checkpoint.

  Args:
    stored, current: as those of `check`.
    where: the run folder of the checkpoint, for the error.

  Raises:
    InputError: naming the first field that differs.
  """
  _check(stored, current, where, _FREE_TO_START, '')


def _check(
  stored: dict, current: dict, where: str, free: tuple[str, ...], never: str
) -> None:
  """Compares all fields but those of `free`; `never` is compared even so."""
  old, new = dict(config_lib.flatten(stored)), dict(config_lib.flatten(current))
  for field in sorted(old.keys() | new.keys()):
    if field != never and any(
      field == f or field.startswith(f + '.') for f in free
    ):
      continue

    if old.get(field) != new.get(field):
      name = (
        'the prepared data (config.data)'
        if field == 'data_fingerprint'
        else f'config.{field}'
      )
      raise InputError(
        f'{name}: {new.get(field)!r} differs from {old.get(field)!r} of the '
        f'checkpoint in {where}; allowed: the same, or another --workdir'
      )
