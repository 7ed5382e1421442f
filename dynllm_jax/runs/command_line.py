"""The flags of the command, and what is wrong with a command line."""

import os
import re
from typing import NamedTuple

from absl import flags
import ml_collections
from ml_collections import config_flags

from dynllm_jax import config as config_lib
from dynllm_jax.runs import config_files
from dynllm_jax.runs import stored_config
from dynllm_jax.types import InputError

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Configuration file, FILE.py or FILE.py:SYSTEM; those that come with the '
  'package by name, as demo.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Run folder: checkpoints and reports; default runs/<config name>.',
)
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  (
    'train',
    'evaluate',
    'facets',
    'check',
    'config',
    'tune',
    'recommend',
    'serve',
    'export',
    'compare',
  ),
  'What to do: train (and test), evaluate (restore '
  'and test), facets (precompute only), check (fields and the first rows '
  'of the log), config (all fields with their meaning), tune (choose system '
  'and fields on validation, within --minutes); with the folder of a run and '
  'no config: recommend (to a file, or line by line), serve (over HTTP), '
  'export (vectors, parameters and towers for other programs); with the '
  'folders of runs: compare (side by side, on a page).',
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
_INIT_FROM = flags.DEFINE_string(
  'init_from',
  '',
  'With --mode=train: the folder of an earlier run, whose parameters training '
  'starts from, on the log and all that its journal has.',
)
_JOURNAL = flags.DEFINE_string(
  'journal',
  '',
  'The journal of the run that is served, or of --init_from: a file, or '
  'postgresql+psycopg://...; default live/journal.sqlite in its folder.',
)
_MULTIHOST = flags.DEFINE_bool(
  'multihost',
  False,
  'Let JAX find the other hosts, as on a Cloud TPU VM; '
  'not needed where variables name them (docs/devices.md).',
)
_USERS = flags.DEFINE_string(
  'users',
  'all',
  'With --mode=recommend: ids with commas between them, @FILE with an id a '
  'line, or all.',
)
_K = flags.DEFINE_integer(
  'k', 10, 'With --mode=recommend: how many items a user.'
)
_TIME = flags.DEFINE_string(
  'time',
  None,
  'With --mode=recommend: when, unix seconds or as 2026-01-31T18:00; default '
  'just after the newest event.',
)
_EXCLUDE_SEEN = flags.DEFINE_bool(
  'exclude_seen',
  False,
  'With --mode=recommend: leave out what a user has taken before.',
)
_STREAM = flags.DEFINE_bool(
  'stream',
  False,
  'With --mode=recommend: answer JSON lines of the standard input, in order.',
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'With --mode=recommend: a file that ends in .parquet, .jsonl or .csv. With '
  '--mode=export: a folder; default WORKDIR/export.',
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Where the prepared data of the run are now, if not where they were; with '
  '--mode=recommend, serve or export.',
)
_RUNS = flags.DEFINE_list(
  'runs',
  [],
  'With --mode=compare: the run folders, with commas between them; the page is '
  'written to --workdir, default runs/compare.',
)
_PORT = flags.DEFINE_integer(
  'port', 8000, 'With --mode=serve: the port, 0 for a free one.', 0, 65535
)
_HOST = flags.DEFINE_string(
  'host',
  '127.0.0.1',
  'With --mode=serve: the address to listen at. Any that other machines reach '
  'needs a token, in the variable DYNLLM_TOKEN.',
)
_FOLLOW = flags.DEFINE_bool(
  'follow',
  False,
  'With --mode=serve: follow a journal that another server writes, and take in '
  'no events here.',
)

_MINUTES = flags.DEFINE_float(
  'minutes',
  60.0,
  'With --mode=tune: how long to go on; what is under way is finished.',
  lower_bound=0.0,
)
_SYSTEMS = flags.DEFINE_list(
  'systems',
  list(config_lib.TUNED),
  'With --mode=tune: the systems that are tried, as dynllm+text or sasrec.',
)
# Modes that read the configuration from the run folder.
FROM_RUN_FOLDER = ('recommend', 'serve', 'export')
# Flags that not every mode has.
_MODES_OF = (
  (_DRY_RUN, ('facets',)),
  (_USER, ('facets',)),
  (_MINUTES, ('tune',)),
  (_SYSTEMS, ('tune',)),
  (_USERS, ('recommend',)),
  (_K, ('recommend',)),
  (_TIME, ('recommend',)),
  (_EXCLUDE_SEEN, ('recommend',)),
  (_STREAM, ('recommend',)),
  (_OUTPUT, ('recommend', 'export')),
  (_DATA_DIR, FROM_RUN_FOLDER),
  (_INIT_FROM, ('train',)),
  (_JOURNAL, ('train', *FROM_RUN_FOLDER)),
  (_RUNS, ('compare',)),
  (_PORT, ('serve',)),
  (_HOST, ('serve',)),
  (_FOLLOW, ('serve',)),
)


class Command(NamedTuple):
  """What a command line asks for; each field is the flag of its name.

  `config` is None for the modes of `FROM_RUN_FOLDER`, and for `compare`.
  """

  config: ml_collections.ConfigDict | None
  workdir: str
  mode: str
  dry_run: bool = False
  user: str | None = None
  init_from: str = ''
  journal: str = ''
  multihost: bool = False
  minutes: float = 60.0
  systems: tuple[str, ...] = ()
  config_file: str = ''
  users: str = 'all'
  k: int = 10
  time: str | None = None
  exclude_seen: bool = False
  stream: bool = False
  output: str | None = None
  data_dir: str | None = None
  runs: tuple[str, ...] = ()
  port: int = 8000
  host: str = '127.0.0.1'
  follow: bool = False


def read(argv: list[str]) -> Command:
  """Reads a command line.

  Args:
    argv: the program's name and its arguments.

  Raises:
    InputError: naming the flag or the field that is wrong.
  """
  argv = _with_stored_config(argv)
  rest = _parse(argv)
  if rest[1:]:
    raise InputError(f'argument {rest[1]!r} is not a flag; see --help')
  mode = _MODE.value
  for flag, modes in _MODES_OF:
    if flag.present and mode not in modes:
      raise InputError(
        f'--{flag.name} is for --mode={" and ".join(modes)}, not for '
        f'--mode={mode}'
      )
  if mode == 'compare':
    if flags.FLAGS['config'].present:
      raise InputError(
        '--config is not for --mode=compare; allowed: --runs=DIR,DIR,...'
      )
    workdir = _WORKDIR.value or os.path.join('runs', 'compare')
    return Command(None, workdir, mode, runs=tuple(_RUNS.value))
  if mode in FROM_RUN_FOLDER:
    return _of_run_folder(mode)
  if not flags.FLAGS['config'].present:
    if mode == 'config':
      return Command(config_lib.default(), workdir='', mode=mode)
    raise InputError(
      f'--config is missing; allowed: {", ".join(config_files.names())}, or a '
      'file of your own; none with --mode=evaluate and the --workdir of a run; '
      '--help says more'
    )

  named = config_flags.get_config_filename(flags.FLAGS['config'])
  name = os.path.basename(named.partition(':')[0]).removesuffix('.py')
  return Command(
    config=_CONFIG.value,
    workdir=_WORKDIR.value or os.path.join('runs', name),
    mode=mode,
    dry_run=_DRY_RUN.value,
    user=_USER.value,
    init_from=_INIT_FROM.value,
    journal=_JOURNAL.value,
    multihost=_MULTIHOST.value,
    minutes=_MINUTES.value,
    systems=tuple(_SYSTEMS.value),
    config_file=named.partition(':')[0],
  )


def asks_for_help(argv: list[str]) -> bool:
  """Whether a command line asks what there is, rather than for work."""
  return any(
    re.fullmatch('-h|--?help(short|full)?', argument) for argument in argv[1:]
  )


def of_help(argv: list[str]) -> Command:
  """The command `--mode=config` for the --config that stands beside --help."""
  named = _given(argv, 'config')
  return read(
    [argv[0], '--mode=config', *([f'--config={named}'] if named else [])]
  )


def flag_help() -> str:
  """The flags of the command, each with its meaning and default."""
  return flags.FLAGS.module_help(__name__).partition(':\n')[2]


def _of_run_folder(mode: str) -> Command:
  """The command of a mode that reads the configuration from the run folder."""
  if flags.FLAGS['config'].present:
    raise InputError(
      f'--config is not for --mode={mode}, which reads that of the run; '
      'allowed: --workdir=DIR'
    )
  if not _WORKDIR.value:
    raise InputError(
      '--workdir is missing; allowed: the folder of a run with --mode=train'
    )

  return Command(
    config=None,
    workdir=_WORKDIR.value,
    mode=mode,
    users=_USERS.value,
    k=_K.value,
    time=_TIME.value,
    exclude_seen=_EXCLUDE_SEEN.value,
    stream=_STREAM.value,
    output=_OUTPUT.value,
    data_dir=_DATA_DIR.value,
    port=_PORT.value,
    host=_HOST.value,
    journal=_JOURNAL.value,
    follow=_FOLLOW.value,
  )


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; returns the program's name and what is no flag."""
  try:
    if named := _given(argv, 'config'):
      found = config_files.find(named)
      argv = [
        argument.replace(named, found)
        if _is_config(argument, named)
        else argument
        for argument in argv
      ]
      _check_config_file(found)
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise InputError(str(error)) from error
  # ml_collections raises these for a field that is not there, and may suggest
  # one of a similar name.
  except (AttributeError, KeyError) as error:
    text = str(error)
    field = re.search(r"'([^'\\]+)", text)
    near = re.search(r'mean "([^"]+)"', text)
    hint = f', as {near[1]!r}' if near else ''
    raise InputError(
      f'--config: there is no field {field[1] if field else text!r}; '
      'allowed: the fields of dynllm_jax/config.py, of the system, and those '
      f'that a config file adds, `with config.unlocked(): ...`{hint}'
    ) from error


def _with_stored_config(argv: list[str]) -> list[str]:
  """A command line with the configuration of the run folder that it names.

  Where a run is there already, --config need not be given.
  """
  workdir = _given(argv, 'workdir')
  evaluates = _given(argv, 'mode') == 'evaluate'
  if not evaluates or not workdir or _given(argv, 'config'):
    return argv
  return [argv[0], f'--config={stored_config.__file__}:{workdir}', *argv[1:]]


def _given(argv: list[str], name: str) -> str:
  """The value of a flag on a command line, '' if it is not there."""
  flag = re.compile(rf'--?{name}(=.*)?', re.DOTALL)
  for argument, following in zip(argv[1:], [*argv[2:], '']):
    if match := flag.fullmatch(argument):
      return (match[1] or f'={following}')[1:]
  return ''


def _is_config(argument: str, named: str) -> bool:
  """Whether an argument is `--config` with this value, or the value alone."""
  return argument in (named, f'--config={named}', f'-config={named}')


def _check_config_file(named: str) -> None:
  """Runs a config file as the flags will, to say what is wrong with it.

  The flags would report an error in the file, or that there is no such file, as
  a failure to parse a flag.

  Args:
    named: `FILE.py` or `FILE.py:ARGUMENT`.

  Raises:
    InputError: naming the file and what is wrong with it.
    AttributeError, KeyError: for a misspelled field, in the words of
      ml_collections.
  """
  file, _, argument = named.partition(':')
  if not os.path.isfile(file):
    raise InputError(
      f'--config: {file!r} is no file; allowed: '
      f'{", ".join(config_files.names())}, or a file like those of configs/'
    )

  try:
    made = config_files.load(file)(*[argument] if argument else [])
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
