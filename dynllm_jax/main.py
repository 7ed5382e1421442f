"""The command: `python -m dynllm_jax.main --config=FILE --workdir=DIR`.

FILE is a file of configs/, or FILE:SYSTEM with a system of dynllm_jax/models.
Any field of the configuration is overridden, as --config.train.num_epochs=5;
dynllm_jax/config.py and the system's file list them all. Your own log:

  python -m dynllm_jax.main --config=configs/event_log.py --workdir=runs/shop \\
      --config.data.events=events.csv --config.data.items=items.csv
"""

import os
import re
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from dynllm_jax import config as config_lib
from dynllm_jax.runs import config_file
from dynllm_jax.types import InputError

MODES = ('train', 'evaluate', 'facets')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Configuration file, FILE.py or FILE.py:SYSTEM.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Run folder: checkpoints and reports; default runs/<config name>.',
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  MODES,
  'What to do: train (and test), evaluate (restore '
  'and test), facets (precompute only).',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run',
  False,
  'With --mode=facets: say how many prompts and tokens '
  'writing would take, how long and at what cost, and write nothing.',
)
_USER = flags.DEFINE_string(
  'user',
  None,
  'With --mode=facets: print the facets of the user of this '
  'id, with the purchases behind them.',
)
_MULTIHOST = flags.DEFINE_bool(
  'multihost',
  False,
  'Let JAX find the other hosts, as on a Cloud TPU VM; '
  'not needed where variables name them (README, "Many devices").',
)


def main(argv: list[str]) -> int:
  """Reads the flags and runs the mode.

  Args:
    argv: the command line.

  Returns:
    The exit status; bad input ends in one line `error: ...` on stderr.
  """
  # A name that the terminal's encoding lacks must not end a run.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    config, workdir, mode = _read_flags(argv)
    config_lib.check_values(config)
    from dynllm_jax.parallel import processes
    from dynllm_jax.runs import modes

    if mode == 'facets':
      modes.facets_mode(config, _DRY_RUN.value, _USER.value)
    else:
      processes.start(config.mesh.start_timeout_s, _MULTIHOST.value)
      with processes.together():
        {'train': modes.train_mode, 'evaluate': modes.evaluate_mode}[mode](
          config, workdir
        )
    return 0
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  except BrokenPipeError:
    # Whoever read the output, such as `head`, has seen enough; nor may the
    # interpreter write what is left.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    print(
      'error:',
      ' '.join(f'{type(error).__name__}: {error}'.split())
      + '; allowed: files that can be read, folders that can be written, '
      'room on the disk',
      file=sys.stderr,
    )
    return 2


def _read_flags(argv):
  """The configuration, the run folder and the mode of a command line."""
  app.define_help_flags()
  try:
    _try_config_file(argv)
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error)) from error
  except (AttributeError, KeyError) as error:
    text = str(error)
    field = re.search(r"'([^'\\]+)", text)
    near = re.search(r'mean "([^"]+)"', text)
    hint = f', as {near[1]!r}' if near else ''
    raise InputError(
      f'--config: there is no field {field[1] if field else text!r}; '
      f'allowed: the fields of dynllm_jax/config.py and of the system{hint}'
    ) from error
  if rest[1:]:
    raise InputError(f'argument {rest[1]!r} is not a flag; see --help')
  if not flags.FLAGS['config'].present:
    raise InputError('--config is missing; allowed: a file of configs/')
  for flag in (_DRY_RUN, _USER):
    if flag.present and _MODE.value != 'facets':
      raise InputError(
        f'--{flag.name} is for --mode=facets, not for --mode={_MODE.value}'
      )
  file = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[
    0
  ]
  name = os.path.basename(file).removesuffix('.py')
  workdir = _WORKDIR.value or os.path.join('runs', name)
  return _CONFIG.value, workdir, _MODE.value


def _try_config_file(argv):
  """Has the config file of a command line say what is wrong with it."""
  named = re.compile(r'--?config(=.*)?', re.DOTALL)
  for flag, following in zip(argv[1:], [*argv[2:], '']):
    if match := named.fullmatch(flag):
      config_file.check((match[1] or f'={following}')[1:])


if __name__ == '__main__':
  sys.exit(main(sys.argv))
