"""What is wrong with a config file, before the flags read it."""

import importlib.util
import os

import ml_collections

from dynllm_jax.types import InputError


def check(named: str) -> None:
  """Runs a config file as the flags will.

  They would report an error of its own, or that there is no such file, as
  their own failure to parse.

  Args:
    named: `FILE.py` or `FILE.py:ARGUMENT`.

  Raises:
    InputError: naming the file and what is wrong with it.
    AttributeError, KeyError: for a misspelt field, as ml_collections words it.
  """
  file, _, argument = named.partition(':')
  if not os.path.isfile(file):
    raise InputError(
      f'--config: {file!r} is no file; allowed: a file of configs/, or one '
      'like them'
    )
  try:
    spec = importlib.util.spec_from_file_location('config_file', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(*[argument] if argument else [])
  except (InputError, KeyError):
    raise
  # Whatever a config file may raise; its author needs to know what and where.
  except Exception as error:
    if 'did you mean' in str(error).lower():
      raise
    raise InputError(
      f'--config: {file} cannot be used ({type(error).__name__}: {error}); '
      'allowed: a file like those of configs/'
    ) from error
  if not isinstance(made, ml_collections.ConfigDict):
    raise InputError(
      f'--config: get_config of {file} returns {type(made).__name__}; '
      'allowed: what dynllm_jax.config.default returns'
    )
