"""The config files that come with the package, by their names."""

from collections.abc import Callable
import importlib.util
import os
import pathlib

import ml_collections

import dynllm_jax
from dynllm_jax.types import InputError


def folder() -> pathlib.Path:
  """Where they are: in the installed package, or beside it in a checkout."""
  package = pathlib.Path(dynllm_jax.__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def names() -> list[str]:
  """Their names, as `--config=NAME` takes them."""
  return sorted(path.stem for path in folder().glob('*.py'))


def find(named: str) -> str:
  """The file that `--config` names.

  Args:
    named: `FILE` or `FILE:ARGUMENT`; FILE may be the name of a file that comes
      with the package, as `demo`, `demo.py` or `configs/demo.py`. A file of
      one's own goes first.

  Returns:
    The same with the file's path, or unchanged where there is no such file.
  """
  file, colon, argument = named.partition(':')
  above, name = os.path.split(file)
  path = folder() / f'{name.removesuffix(".py")}.py'
  if os.path.isfile(file) or above not in ('', 'configs') or not path.is_file():
    return named
  return f'{path}{colon}{argument}'


def load(file: str) -> Callable[..., ml_collections.ConfigDict]:
  """The `get_config` of a config file.

  Raises:
    Exception: whatever the file raises.
  """
  spec = importlib.util.spec_from_file_location('config_file', file)
  if spec is None or spec.loader is None:
    raise ImportError('its name does not end in .py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  found: Callable[..., ml_collections.ConfigDict] = module.get_config
  return found


def get_config(named: str) -> ml_collections.ConfigDict:
  """The configuration of a config file, as `--config` has it.

  Args:
    named: `FILE` or `FILE:SYSTEM`; FILE may be the name of a file that comes
      with the package: 'event_log', 'event_log:tgn+text'.

  Raises:
    InputError: if there is no such file, or no such system.
  """
  file, _, argument = find(named).partition(':')
  if not os.path.isfile(file):
    raise InputError(
      f'config file {named!r}: there is no such file; allowed: one of '
      f'{", ".join(names())}, or the path of a file of your own'
    )
  return load(file)(argument)
