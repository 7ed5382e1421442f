"""The command: `dynllm --config=FILE --workdir=DIR`.

It is `python -m dynllm_jax.main` too, and the folder may be left out. FILE is a
file of your own or one that comes with the package, by name: demo, event_log,
online_retail, amazon_beauty, tmall, alibaba. FILE:SYSTEM takes another system,
as demo:tgn. Any field of the configuration is overridden, as
--config.train.num_epochs=5; --mode=config and --help list them all, with their
meaning and what is allowed, and --mode=check says how a log is understood;
--version says which this is. Your own log:

  dynllm --config=event_log --workdir=runs/shop \\
      --config.data.events=events.csv --config.data.items=items.csv
"""

import io
import os
import sys

import dynllm_jax
from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax.runs import command_line
from dynllm_jax.runs import config_files
from dynllm_jax.types import InputError


def main(argv: list[str]) -> int:
  """Reads the flags and runs the mode.

  Args:
    argv: the command line.

  Returns:
    The exit status; bad input ends in one line `error: ...` on stderr.
  """
  # A name that the terminal's encoding lacks must not end a run.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    if '--version' in argv[1:]:
      print(f'dynllm_jax {dynllm_jax.__version__}')
    elif command_line.asks_for_help(argv):
      _print_help(argv)
    else:
      _run(command_line.read(argv))
    return 0
  except checks.Faults as error:
    return max(_fail(line) for line in error.lines)
  except InputError as error:
    return _fail(str(error))
  except KeyboardInterrupt:
    print('\nstopped', file=sys.stderr)
    return 130
  except BrokenPipeError:
    # Whoever reads the output, such as `head`, has seen enough. The interpreter
    # must not fail by writing what is left when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except OSError as error:
    return _fail(
      f'{type(error).__name__}: {error}; allowed: files that can be read, '
      'folders that can be written, room on the disk'
    )


def console() -> int:
  """The command `dynllm`."""
  return main(sys.argv)


def _run(command: command_line.Command) -> None:
  if command.config is None:
    _run_from_run_folder(command)
    return
  if command.mode == 'config':
    _print_fields(command)
    return
  config_lib.check_values(command.config)
  # Slow to import, which a mistyped command need not wait for.
  from dynllm_jax.live import going_on
  from dynllm_jax.live import grown_log
  from dynllm_jax.parallel import processes
  from dynllm_jax.runs import interrupts
  from dynllm_jax.runs import jax_settings
  from dynllm_jax.runs import modes

  jax_settings.pin()
  with interrupts.end_in_one_line(f'stopped: {_how_to_go_on(command)}'):
    if command.mode == 'check':
      modes.check_mode(command.config)
      return
    if command.mode == 'tune':
      from dynllm_jax.runs import tuning

      tuning.tune(
        command.config,
        command.workdir,
        command.minutes,
        config_files.load(command.config_file),
        command.config_file,
        command.systems,
      )
      return
    if command.mode == 'facets':
      modes.facets_mode(command.config, command.dry_run, command.user)
      return
    processes.start(command.config.mesh.start_timeout_s, command.multihost)
    with processes.fail_fast():
      if command.init_from:
        going_on.train_mode(
          command.config, command.workdir, command.init_from, command.journal
        )
      elif command.mode == 'train':
        modes.train_mode(command.config, command.workdir)
      else:
        grown_log.evaluate_mode(command.config, command.workdir)


def _how_to_go_on(command: command_line.Command) -> str:
  """What is kept of an interrupted mode, and what the same command does."""
  if command.mode == 'train':
    return (
      f'every finished epoch is kept in {command.workdir}; the same command '
      'goes on after it'
    )
  if command.mode in ('facets', 'tune'):
    return 'what was finished so far is kept; the same command goes on'
  return 'nothing was changed; the same command starts again'


def _print_help(argv: list[str]) -> None:
  """Says what the command does, and lists its flags and fields."""
  command = command_line.of_help(argv)
  whose = command.config_file or 'dynllm'
  print(f'{__doc__}\nFlags:\n\n{command_line.flag_help()}\n')
  print(
    f'Fields with the values of {whose}; add --config=FILE:SYSTEM for others'
  )
  _print_fields(command)


def _print_fields(command: command_line.Command) -> None:
  """Lists the fields of a configuration."""
  from dynllm_jax.runs import config_reference

  assert command.config is not None
  print('\n'.join(config_reference.describe(command.config)))


def _run_from_run_folder(command: command_line.Command) -> None:
  """Runs a mode of a trained model, or of several."""
  if command.mode == 'compare':
    from dynllm_jax.runs import comparison

    comparison.run(command.runs, command.workdir)
    return
  from dynllm_jax.runs import jax_settings

  jax_settings.pin()
  if command.mode == 'recommend':
    from dynllm_jax.serving import recommend_mode

    recommend_mode.run(command)
  elif command.mode == 'export':
    from dynllm_jax.serving import export_mode

    export_mode.run(command)
  else:
    from dynllm_jax.serving import serve_mode

    serve_mode.run(command)


def _fail(what: str) -> int:
  print('error:', ' '.join(what.split()), file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv))
