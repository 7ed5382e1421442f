"""Every field of the configuration: its meaning, default and allowed values.

The meaning is the comment beside a default in `config.py`: the lines above a
field or what stands behind it; fields that follow without one share it. Fields
of systems have theirs in `bases/field_meanings.py`, as systems share them, or
beside their defaults. What is allowed is what the
rules say that check the fields (config_check.py). So no list of fields is kept
by hand:

    python -m dynllm_jax.main --mode=config
    python -m dynllm_jax.runs.config_reference > docs/configuration.md
"""

import ast
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import inspect
import io
import sys
import textwrap
import tokenize
from typing import Any
from typing import NamedTuple

import ml_collections

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax import plugins
from dynllm_jax.bases import field_meanings
from dynllm_jax.datasets.sources import simulated
from dynllm_jax.runs import config_check
from dynllm_jax.types import InputError


class Field(NamedTuple):
  """What a user needs to know of a field.

  Attributes:
    name: its full name, such as `config.train.loss`.
    meaning: in words.
    value: its default, or what a config file has.
    allowed: which values it may have, in words.
  """

  name: str
  meaning: str
  value: Any
  allowed: str


def fields(config: ml_collections.ConfigDict) -> Iterator[Field]:
  """All fields of a configuration, in the order in which they are defined."""
  meanings = _meanings(config)
  allowed = _allowed(config)
  order = {name: place for place, name in enumerate(meanings)}
  named = {
    f'config.{path}': value
    for path, value in config_lib.flatten(config.to_dict())
  }
  for name in sorted(named, key=lambda name: order.get(name, len(order))):
    value = named[name]
    words = allowed.get(name) or _by_type(name, value)
    yield Field(name, meanings.get(name, ''), value, words)


def describe(config: ml_collections.ConfigDict) -> list[str]:
  """The fields of a configuration as lines of Markdown, section by section."""
  lines, section = [], ''
  for field in fields(config):
    above = '.'.join(field.name.split('.')[:-1])
    above = 'config.model' if above.startswith('config.model') else above
    if above != section:
      section = above
      lines += ['', f'## {section}', '']
    lines += _item(field, f'`{field.value!r}`')
  return lines


def page() -> str:
  """The page docs/configuration.md, with the fields of all systems."""
  usual = config_lib.default()
  lines = [
    '# Configuration',
    '',
    'Every field with its default, its meaning and what is allowed. A config',
    'file of `configs/` sets what differs, and the command line has the last',
    'word: `--config.train.num_epochs=5`. `--mode=config` prints this list for',
    'a config file, with the values that it sets; `--mode=check` says what is',
    'wrong with one.',
    '',
    'Made by `python -m dynllm_jax.runs.config_reference`.',
  ]
  model = lines + describe(usual)
  start = model.index('## config.model')
  end = model.index('## config.train')
  return '\n'.join([*model[:start], *_of_systems(), *model[end:]]) + '\n'


def _of_systems() -> list[str]:
  """The fields of all systems of this package, each once, with defaults."""
  found: dict[str, Field] = {}
  values: dict[str, dict[str, list[str]]] = {}
  for name in plugins.own_names(plugins.SYSTEMS):
    for field in fields(config_lib.default(name)):
      if field.name.startswith('config.model.'):
        found.setdefault(field.name, field)
        defaults = values.setdefault(field.name, {})
        defaults.setdefault(repr(field.value), []).append(name)

  lines = ['## config.model', '', 'Each system has some of them.', '']
  for name, field in found.items():
    if name == 'config.model.name':
      continue
    words = '; '.join(
      f'`{value}` in {", ".join(names)}'
      for value, names in values[name].items()
    )
    lines += _item(field, words)
  return [*lines, '']


def _item(field: Field, value: str) -> list[str]:
  """An entry of a list, with the value in words."""
  meaning = field.meaning.rstrip(' .:')
  return textwrap.wrap(
    f'`{field.name}`, {value}: {meaning}. Allowed: {field.allowed}.',
    78,
    initial_indent='- ',
    subsequent_indent='  ',
    break_long_words=False,
    break_on_hyphens=False,
  )


def _meanings(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Meanings by full name, as far as they are written anywhere."""
  found = {}
  for section, function in config_lib.SECTIONS.items():
    for key, words in _comments(function).items():
      found['.'.join(filter(None, ['config', section, key]))] = words

  module = config_lib.system_module(config.model.name)
  own = getattr(module, 'MEANINGS', {})
  beside = _comments(module.default_config)
  for path, _ in config_lib.flatten(config.model.to_dict()):
    words = own.get(path) or field_meanings.MEANINGS.get(path, '')
    words = words or beside.get(path, '')
    found[f'config.model.{path}'] = words
  return found


def _comments(function: Callable[..., Any]) -> dict[str, str]:
  """The comments on the keys of the dictionaries that a function makes."""
  source = textwrap.dedent(inspect.getsource(function))
  comments: dict[int, str] = {}
  alone = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      comments[token.start[0]] = token.string.lstrip('# ').strip()
      if token.line.lstrip().startswith('#'):
        alone.add(token.start[0])

  found: dict[str, str] = {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Dict):
      continue
    words = ''
    for key, value in zip(node.keys, node.values):
      if not isinstance(key, ast.Constant):
        continue
      line = key.lineno
      above: list[str] = []
      while line - 1 in alone:
        line -= 1
        above.insert(0, comments[line])
      words = ' '.join(above) or words
      # What stands behind a field is about it alone.
      behind = comments.get(value.end_lineno or key.lineno, '')
      found[str(key.value)] = behind or words
  return found


def _allowed(config: ml_collections.ConfigDict) -> dict[str, str]:
  """What the rules say of each field, by full name."""
  with checks.recorded() as rules, contextlib.suppress(InputError):
    for kind, section in (
      (plugins.WRITERS, config.facets.writer),
      (plugins.ENCODERS, config.facets.encoder),
    ):
      for name in plugins.own_names(kind):
        module = plugins.load(kind, name, '')
        with contextlib.suppress(InputError):
          config_check.own_check(module, section)
    with contextlib.suppress(InputError):
      simulated.files(config.data)
    config_check.check(config)
  names = {
    'config.data.source': plugins.names(plugins.SOURCES),
    'config.facets.writer.name': plugins.names(plugins.WRITERS),
    'config.facets.encoder.name': plugins.names(plugins.ENCODERS),
  }
  for field, own in names.items():
    rules[field] = f'{", ".join(own)}, or the full name of a module'
  return rules


def _by_type(name: str, value: Any) -> str:
  """What is allowed where no rule says more: by the type of the default."""
  if isinstance(value, bool) or name.endswith('header'):
    return 'True, False'
  if isinstance(value, str):
    return 'a text'
  if isinstance(value, tuple):
    return 'a tuple'
  return 'a number'


if __name__ == '__main__':
  sys.stdout.write(page())
