"""Plug-ins: systems, data sources, text encoders and facet writers, by name.

A plug-in is a module with the functions that its kind asks for. Those of this
package are the files of one folder, and their names are the files'. One from
outside has the full name of its module, such as `my_shop.my_system`, or the
short name that an installed distribution gives it as an entry point in the
kind's group. No list of plug-ins is kept anywhere.

What a source, an encoder or a writer gives is kept on disk and found again
without asking it. One from outside therefore has a `VERSION`, a whole number
that its author raises whenever the same input gives something else: `version`
returns it with the module's name, and both are part of what the files are
found by.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import types
from typing import Any
from typing import NamedTuple

from dynllm_jax.types import InputError


class Kind(NamedTuple):
  """A kind of plug-in.

  Attributes:
    word: what one is called in messages.
    package: the folder of this package's own plug-ins.
    suffix: what follows the plug-in's name in a file's name: `flax_encoder.py`
      is the encoder `flax`.
    group: the group of entry points by which installed distributions give
      plug-ins of this kind.
    functions: the functions that a plug-in must have.
    kept: whether what it gives is kept on disk, so that it needs a VERSION.
  """

  word: str
  package: str
  suffix: str
  group: str
  functions: tuple[str, ...]
  kept: bool = True


SYSTEMS = Kind(
  word='system',
  package='dynllm_jax.models',
  suffix='',
  group='dynllm_jax.systems',
  functions=('default_config', 'build'),
  kept=False,
)
SOURCES = Kind(
  word='source',
  package='dynllm_jax.datasets.sources',
  suffix='',
  group='dynllm_jax.sources',
  functions=('files', 'read'),
)
ENCODERS = Kind(
  word='encoder',
  package='dynllm_jax.text.encoders',
  suffix='_encoder',
  group='dynllm_jax.encoders',
  functions=('encode', 'identity', 'describe'),
)
WRITERS = Kind(
  word='writer',
  package='dynllm_jax.facets.writers',
  suffix='_writer',
  group='dynllm_jax.writers',
  functions=('write', 'plan', 'identity', 'describe'),
)


def names(kind: Kind) -> list[str]:
  """Short names of all plug-ins of a kind, installed ones included."""
  return sorted({*_own_names(kind), *_entry_points(kind)})


def own_names(kind: Kind) -> list[str]:
  """Short names of the plug-ins of this package."""
  return sorted(_own_names(kind))


def load(kind: Kind, name: str, field: str) -> types.ModuleType:
  """The module of a plug-in; one of this package before an installed one.

  Args:
    kind: one of the kinds above.
    name: one of `names`, or the full name of a module anywhere.
    field: the full name of the field that has the name, such as
      `config.data.source`, for errors.

  Raises:
    InputError: if there is no such plug-in, it cannot be imported, or it
      lacks a function or its VERSION.
  """
  if name in _own_names(kind):
    return importlib.import_module(f'{kind.package}.{name}{kind.suffix}')

  target = _entry_points(kind).get(name, name)
  if not _is_module(target):
    raise InputError(
      f'{field}: unknown {kind.word} {name!r}; allowed: '
      f'{", ".join(names(kind))}, or the full name of a module of your own'
    )
  try:
    module = importlib.import_module(target)
  # Whatever the author's code raises; the author needs to know what and where.
  except Exception as error:
    raise InputError(
      f'{field}: the {kind.word} {name!r} cannot be imported '
      f'({type(error).__name__}: {error}); allowed: '
      f'{", ".join(names(kind))}, or a module that Python finds (PYTHONPATH)'
    ) from error

  missing = [f for f in kind.functions if not hasattr(module, f)]
  if missing:
    raise InputError(
      f'{field}: {target} has no function {missing[0]!r}; {kind.word}s have '
      f'{", ".join(kind.functions)}'
    )
  if kind.kept and not isinstance(getattr(module, 'VERSION', None), int):
    raise InputError(
      f'{field}: {target} has no VERSION; {kind.word}s from outside have '
      'VERSION = 1, or a larger whole number once they give something else'
    )
  return module


def version(kind: Kind, module: types.ModuleType) -> dict[str, Any]:
  """What tells a plug-in from outside from any other and from older code.

  Args:
    kind: one of the kinds above.
    module: a plug-in of that kind, of `load`.

  Returns:
    JSON values: the module's name and its VERSION. Nothing for a plug-in of
    this package, whose version is already part of what files are found by.
  """
  if module.__name__.startswith(f'{kind.package}.'):
    return {}
  return {'module': module.__name__, 'module_version': module.VERSION}


@functools.cache
def _own_names(kind: Kind) -> frozenset[str]:
  """Short names of the files of this package, none of them imported."""
  folder = importlib.import_module(kind.package).__path__
  return frozenset(
    module.name.removesuffix(kind.suffix)
    for module in pkgutil.iter_modules(folder)
    if module.name.endswith(kind.suffix) and not module.name.startswith('_')
  )


@functools.cache
def _entry_points(kind: Kind) -> dict[str, str]:
  """Modules of installed distributions, by short name."""
  found = importlib.metadata.entry_points(group=kind.group)
  return {entry.name: entry.value for entry in found}


def _is_module(name: str) -> bool:
  """Whether a name may be a module's: it has a dot, or Python finds it."""
  if not isinstance(name, str):
    return False
  return '.' in name or (
    name.isidentifier() and importlib.util.find_spec(name) is not None
  )
