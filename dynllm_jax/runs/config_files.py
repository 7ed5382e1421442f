"""The config files that come with the package, by their names."""

import os
import pathlib

import dynllm_jax


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
