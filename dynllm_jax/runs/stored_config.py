"""The configuration of a run folder, as a config file: FILE.py:WORKDIR.

So a run that is there needs no --config, and its fields are overridden as ever,
--config.data.dir=DIR.
"""

import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.types import InputError


def get_config(workdir: str) -> ml_collections.ConfigDict:
  """The configuration that a run was trained with.

  Args:
    workdir: the folder of a run with `--mode=train`.

  Raises:
    InputError: if it has no configuration, or one that cannot be read.
  """
  try:
    fields = RunFolder(workdir).read_json('config.json')
  except (OSError, ValueError) as error:
    raise InputError(
      f'--workdir: config.json of {workdir!r} cannot be read ({error}); '
      'allowed: the folder of a run with --mode=train'
    ) from error
  if fields is None:
    raise InputError(
      f'--workdir: {workdir!r} has no config.json; allowed: the folder of a '
      'run with --mode=train'
    )
  return config_lib.restored(fields)
