"""The rules of docs/architecture.md, read off the syntax trees."""

import ast
import pathlib
import sys

import pytest

import dynllm_jax
from dynllm_jax import plugins

PACKAGE = pathlib.Path(dynllm_jax.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))

# Imports go down only: a module of a room imports what stands below the room.
# Inside a room modules may import each other, plug-ins excepted.
FLOORS = [
  'main',
  'serving',  # command line and HTTP on top of a recommender
  'live',  # a trained model that answers and takes in events
  'runs',  # modes, checkpoints, reports
  'config',
  'engine',  # training, ranking
  'models',
  'bases',  # what kinds of systems share
  'objectives',  # negatives, scores, losses
  'layers',
  'graph',  # neighborhoods, node memories
  'facets',
  'text',
  'datasets',
  'kernels',  # forms of one computation
  'parallel',  # mesh, sharded tables, processes
  'storage',
  'plugins',
  'checks',  # of configuration fields
  'progress',
  'compiling',
  'types',
  '',  # the package itself, for its version
]
# Who may import what is slow to import; and only inside a function.
LAZY = {
  'transformers': {'facets', 'text'},
  'huggingface_hub': {'text'},
  'openai': {'facets', 'text'},
  'tensorflow_datasets': {'datasets'},
  **dict.fromkeys(('etils', 'fsspec', 'gcsfs'), {'storage'}),
}
HARNESS = ('engine', 'objectives', 'runs', 'live')
# A system's name that is also the name of something else that is reported.
# Purchases of an item bought before; a way to draw negatives.
OTHER_MEANING = {'repeat', 'popularity'}
MODELS = {path.stem for path in PACKAGE.glob('models/[!_]*.py')}


def module_of(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def tree_of(path):
  return ast.parse(path.read_text(encoding='utf-8'))


def is_module(name):
  path = PACKAGE.joinpath(*name.split('.')) if name else PACKAGE
  return path.with_suffix('.py').exists() or (path / '__init__.py').exists()


def imported(tree):
  """Names of all modules imported anywhere in a tree, also by importlib."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        own = inner.removeprefix('dynllm_jax.')
        yield inner if inner != own and is_module(own) else node.module
    elif isinstance(node, ast.Call) and 'import_module' in ast.unparse(
      node.func
    ):
      yield ''.join(
        part.value if isinstance(part, ast.Constant) else '*'
        for part in getattr(node.args[0], 'values', [node.args[0]])
      )


def own_imports(path):
  """Modules of the package that a file imports, without the package's name."""
  for name in imported(tree_of(path)):
    if name.split('.')[0] == 'dynllm_jax':
      yield name.partition('.')[2]


def floor(module):
  return module.split('.')[0]


def names(paths):
  return [module_of(path) or 'dynllm_jax' for path in paths]


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_imports_go_down_only(path):
  here = floor(module_of(path))
  assert here in FLOORS, f'{here} has no floor in FLOORS'
  for module in own_imports(path):
    there = floor(module)
    assert there == here or FLOORS.index(there) > FLOORS.index(here), (
      f'{module_of(path)} imports {module}'
    )


def test_imports_are_found():
  """The reader of imports itself, on every form of an import."""
  tree = ast.parse("""
import numpy as np, dynllm_jax.graph
from dynllm_jax.graph import memory as m
from dynllm_jax.types import Array
def later():
  from dynllm_jax.layers import gru
  importlib.import_module(f'dynllm_jax.models.{name}')
""")
  assert sorted(imported(tree)) == [
    'dynllm_jax.graph',
    'dynllm_jax.graph.memory',
    'dynllm_jax.layers.gru',
    'dynllm_jax.models.*',
    'dynllm_jax.types',
    'numpy',
  ]


def test_no_import_goes_in_a_circle():
  edges = {
    module_of(path): {
      name
      for name in own_imports(path)
      if '*' not in name and name != module_of(path)
    }
    for path in FILES
  }
  while True:
    leaves = {name for name, below in edges.items() if not below}
    if not leaves:
      break
    edges = {
      name: below - leaves
      for name, below in edges.items()
      if name not in leaves
    }
  assert not edges


@pytest.mark.parametrize(
  'kind',
  [plugins.SYSTEMS, plugins.SOURCES, plugins.ENCODERS, plugins.WRITERS],
  ids=lambda kind: kind.word,
)
def test_plug_ins_never_import_plug_ins(kind):
  """What several plug-ins of a kind need is in a module beside their folder."""
  room = kind.package.removeprefix('dynllm_jax.')
  paths = list(PACKAGE.joinpath(*room.split('.')).glob('*.py'))
  assert len(paths) > 2
  for path in paths:
    for module in own_imports(path):
      assert not f'{module}.'.startswith(f'{room}.'), (
        f'{path.name} imports {module}'
      )


@pytest.mark.parametrize('library', LAZY)
def test_heavy_libraries_are_imported_late_and_where_they_belong(library):
  def uses(tree):
    return any(name.split('.')[0] == library for name in imported(tree))

  users = [path for path in FILES if uses(tree_of(path))]
  assert users, 'nobody imports it any more'
  for path in users:
    tree = tree_of(path)
    assert floor(module_of(path)) in LAZY[library], path.name
    functions = [
      node
      for node in ast.walk(tree)
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    ]
    late = {id(inner) for f in functions for inner in ast.walk(f)}
    for node in ast.walk(tree):
      if isinstance(node, (ast.Import, ast.ImportFrom)) and uses(
        ast.Module([node], [])
      ):
        assert id(node) in late, f'{path.name}:{node.lineno}'


def test_the_ground_floor_imports_jax_and_numpy_only():
  allowed = {*sys.stdlib_module_names, 'jax', 'numpy'}
  assert {
    name.split('.')[0] for name in imported(tree_of(PACKAGE / 'types.py'))
  } <= allowed


@pytest.mark.parametrize('room', HARNESS)
def test_the_harness_names_no_model(room):
  assert 'dynllm' in MODELS
  files = sorted(PACKAGE.glob(f'{room}/*.py'))
  assert len(files) > 1, 'the room is elsewhere'
  for path in files:
    for node in ast.walk(tree_of(path)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        assert node.value not in MODELS - OTHER_MEANING, (
          f'{path.name}, line {node.lineno}: {node.value}'
        )
    assert 'models' not in map(floor, own_imports(path))


def test_no_two_modules_have_one_name():
  files = [path for path in FILES if path.name != '__init__.py']
  stems = [path.stem for path in files]
  assert {stem for stem in stems if stems.count(stem) > 1} == set()


def test_no_module_is_named_like_a_library():
  libraries = {
    name.split('.')[0] for path in FILES for name in imported(tree_of(path))
  }
  libraries -= {'dynllm_jax', *sys.stdlib_module_names}
  assert {'jax', 'flax', 'openai'} <= libraries
  assert not libraries & {path.stem for path in FILES}


def public(body, inside=''):
  """Public functions and classes of a module, and methods of the latter."""
  for node in body:
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      continue
    if node.name.startswith('_'):
      continue
    yield f'{inside}{node.name}', node
    if isinstance(node, ast.ClassDef):
      yield from public(node.body, f'{node.name}.')


def has_docstring(node):
  # Flax calls `setup`; a property is documented with its class.
  plain = node.name == 'setup' or any(
    ast.unparse(d) == 'property' for d in node.decorator_list
  )
  return plain or bool(ast.get_docstring(node))


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_every_public_name_has_a_docstring(path):
  tree = tree_of(path)
  if tree.body:
    assert ast.get_docstring(tree), 'the module has none'
  missing = [
    name for name, node in public(tree.body) if not has_docstring(node)
  ]
  assert not missing


def without_pause(path):
  """Functions of more than 20 lines with neither a blank line nor a comment."""
  lines = path.read_text(encoding='utf-8').split('\n')
  for node in ast.walk(tree_of(path)):
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      continue
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
      continue
    own = lines[body[0].lineno - 1 : node.end_lineno]
    pauses = [line for line in own if not line.strip() or '# ' in line]
    if len(own) > 20 and not pauses:
      yield node.name


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_a_long_body_has_paragraphs(path):
  assert list(without_pause(path)) == []


def test_a_body_without_a_pause_is_found(tmp_path):
  file = tmp_path / 'module.py'
  steps = ['  x = 1'] * 21
  file.write_text('\n'.join(['def f():', '  """Says."""', '', *steps]))
  assert list(without_pause(file)) == ['f']
  steps[5] = ''
  file.write_text('\n'.join(['def f():', '  """Says."""', '', *steps]))
  assert list(without_pause(file)) == []
