"""The command: `python -m dynllm_jax.main --config=FILE --workdir=DIR`."""

import os
import sys

from absl import flags
from ml_collections import config_flags

from dynllm_jax.types import InputError

MODES = ('train', 'evaluate', 'facets')

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, FILE.py or FILE.py:SYSTEM.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run folder: checkpoints and reports; default '
    'runs/<config name>.')
_MODE = flags.DEFINE_enum(
    'mode', 'train', MODES, 'What to do: train (and test), evaluate (restore '
    'and test), facets (precompute only).')


def main(argv: list[str]) -> int:
  """Reads the flags and runs the mode.

  Args:
    argv: the command line.

  Returns:
    The exit status; bad input ends in one line `error: ...` on stderr.
  """
  try:
    rest = flags.FLAGS(argv)
    if rest[1:]:
      raise InputError(f'argument {rest[1]!r} is not a flag; see --help')
    if _CONFIG.value is None:
      raise InputError('--config is missing; allowed: a file of configs/')
    from dynllm_jax import run  # pylint: disable=g-import-not-at-top
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    name = os.path.basename(path.partition(':')[0]).removesuffix('.py')
    workdir = _WORKDIR.value or os.path.join('runs', name)
    {'train': run.train_mode, 'evaluate': run.evaluate_mode,
     'facets': run.facets_mode}[_MODE.value](_CONFIG.value, workdir)
    return 0
  except InputError as error:
    message = str(error)
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    if flags.FLAGS.is_parsed():
      raise  # not of the command line: a defect, shown whole
    message = str(error)
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv))
