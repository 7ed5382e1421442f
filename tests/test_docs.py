"""The documents: what they cite is there, and what they tell to do works."""

import ast
import functools
import io
import operator
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
import tomllib

import pytest

import dynllm_jax
from dynllm_jax import config as config_lib
from dynllm_jax import plugins
from dynllm_jax.runs import command_line
from dynllm_jax.runs import config_files
from tests.testing import ROOT

DOCS = [
  ROOT / 'README.md',
  ROOT / 'CONTRIBUTING.md',
  ROOT / 'CHANGELOG.md',
  *sorted((ROOT / 'docs').glob('*.md')),
]
FOLDERS = ('dynllm_jax', 'configs', 'experiments', 'tests', 'docs')
CODE = sorted(
  path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')
)
SPEC = ROOT / 'docs' / 'spec.md'
ARCHITECTURE = ROOT / 'docs' / 'architecture.md'
CONTRIBUTING = ROOT / 'CONTRIBUTING.md'

_NUMBER = r'\d+(?:\.\d+)?'
# SPEC 3.3, SPEC 3.3 to 3.9, SPEC 3.2 and 3.3, SPEC 3.6, 8
_CITATION = re.compile(rf'SPEC\s+({_NUMBER}(?:(?:,| and| to)\s+{_NUMBER})*)')
_LINK = re.compile(r'\[[^]]*\]\(([^)\s]+)\)')
_PATH = re.compile(rf'(?<![\w./<-])(?:{"|".join(FOLDERS)})/[\w./]*\w')
_MODULE = re.compile(r'\b(?:dynllm_jax|experiments)(?:\.\w+)+')
# A file by its name alone, as `temporal.py` or `graph/temporal.py`.
_FILE = re.compile(r'(?<![\w./<-])(?:\w+/)*[a-z]\w*\.py\b')


def ids(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


@functools.cache
def read(path):
  return path.read_text(encoding='utf-8')


def headings(path):
  """Titles of a document, those in code blocks left out."""
  text = re.sub(r'^```.*?^```', '', read(path), flags=re.DOTALL | re.MULTILINE)
  return re.findall(r'^#+ (.+)$', text, re.MULTILINE)


def anchors(path):
  """What GitHub calls each heading in a link."""
  plain = [re.sub(r'[^\w\- ]', '', title).lower() for title in headings(path)]
  return {title.replace(' ', '-') for title in plain}


@functools.cache
def words_of(path):
  """A document's text; of code its docstrings and comments."""
  if path.suffix != '.py':
    return read(path)
  tokens = tokenize.generate_tokens(io.StringIO(read(path)).readline)
  words = [token.string for token in tokens if token.type == tokenize.COMMENT]
  for node in ast.walk(ast.parse(read(path))):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
      words.append(ast.get_docstring(node) or '')
  return '\n'.join(words)


# --------------------------------------------------------------- citations


def cited(text):
  return {
    number
    for match in _CITATION.finditer(text)
    for number in re.findall(_NUMBER, match[1])
  }


def sections():
  found = [re.match(rf'({_NUMBER})\.? ', title) for title in headings(SPEC)]
  return {match[1] for match in found if match}


def test_citations_are_read():
  assert cited(
    'SPEC 3.3 to\n3.9, and (SPEC 2). SPEC 3.2 and 3.3; SPEC 6, 8'
  ) == {*('3.3', '3.9', '2', '3.2', '6', '8')}
  assert not cited('the SPEC, section 4')


@pytest.mark.parametrize('path', CODE + DOCS, ids=ids(CODE + DOCS))
def test_every_section_cited_is_there(path):
  assert cited(words_of(path)) <= sections()
  assert not re.search(r'\bDESIGN \d', words_of(path))


def test_the_specification_has_the_sections_it_was_first_cited_by():
  wanted = {'2': 3, '3': 11}
  assert {
    *map(str, range(1, 10)),
    *(f'{s}.{k + 1}' for s, count in wanted.items() for k in range(count)),
  } <= sections()


# ------------------------------------------------------------ links, paths


@pytest.mark.parametrize('path', DOCS, ids=ids(DOCS))
def test_every_link_leads_somewhere(path):
  for link in _LINK.findall(read(path)):
    if link.startswith(('http:', 'https:')):
      continue
    place, _, anchor = link.partition('#')
    target = (path.parent / place).resolve() if place else path
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


@pytest.mark.parametrize('path', DOCS, ids=ids(DOCS))
def test_every_path_and_module_named_is_there(path):
  made = {
    word
    for block in shell_blocks(path)
    for word in block.split()
    if '/' in word
  }
  for name in set(_PATH.findall(read(path))):
    known = (ROOT / name).exists() or any(name in word for word in made)
    assert known or '/.venv/' in name, name
  for name in set(_MODULE.findall(read(path))) - groups():
    assert is_there(name) or name.endswith('.md'), name


def groups():
  """Names of entry point groups, which look like modules."""
  kinds = (
    plugins.SYSTEMS,
    plugins.SOURCES,
    plugins.ENCODERS,
    plugins.WRITERS,
  )
  return {kind.group for kind in kinds}


def is_there(name):
  """Whether a dotted name is a module, or a name that a module has."""
  parts = name.split('.')
  for count in range(len(parts), 0, -1):
    place = ROOT.joinpath(*parts[:count])
    file = place.with_suffix('.py')
    if not file.exists() and not place.is_dir():
      continue
    file = file if file.exists() else place / '__init__.py'
    rest = parts[count : count + 1]
    return not rest or re.search(rf'\b{rest[0]}\b', read(file)) is not None
  return False


@pytest.mark.parametrize('path', CODE + DOCS, ids=ids(CODE + DOCS))
def test_every_file_named_in_words_is_there(path):
  files = ids(CODE) + ['dynllm_jax/tests/datasets/test_receipts.py']
  files += re.findall(r'^`(shop/.+)`:$', read(CONTRIBUTING), re.MULTILINE)
  for name in set(_FILE.findall(words_of(path))):
    assert any(f'/{file}'.endswith(f'/{name}') for file in files), name


@functools.cache
def fields():
  """Every field of the configuration, and every part that has some."""
  configs = [config_lib.default(name) for name in config_lib.system_names()]
  names = {name for c in configs for name, _ in config_lib.flatten(c.to_dict())}
  return names | {name.rpartition('.')[0] for name in names}


@pytest.mark.parametrize('path', DOCS, ids=ids(DOCS))
def test_every_field_named_is_one(path):
  parts = 'data|facets|model|train|eval|mesh'
  named = re.findall(
    rf'(?<![\w./])(?:--)?(?:config\.)?((?:{parts})(?:\.[a-z_]+)+)(?![\w(/])',
    read(path),
  )
  # A file's name; a field that a walk gives the configuration.
  other = {f'{name}.{end}' for name in parts.split('|') for end in ('py', 'md')}
  other |= set(re.findall(r'config\.([\w.]+)\s=\s', read(path)))
  assert set(named) - other <= fields()


def stated_defaults(path):
  """(field, number) of the tables that end in a column of defaults."""
  for row in re.findall(r'^\|.*\|$', read(path), re.MULTILINE):
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    names = re.findall(r'`(\w+(?:\.\w+)+)`', ' '.join(cells[:-1]))
    values = re.findall(r'(?<![\w.])\d+(?:\.\d+)?(?![\w.])', cells[-1])
    if len(names) == len(values) and ';' not in cells[-1]:
      yield from zip(names, map(float, values))


def test_defaults_are_as_stated():
  config = config_lib.default('dynllm')
  stated = [(n, v) for n, v in stated_defaults(SPEC) if n in fields()]
  assert len(stated) >= 7
  for name, value in stated:
    assert operator.attrgetter(name)(config) == value, name


def commands(path):
  """Every command of the package in a document's blocks, as words."""
  blocks = re.findall(r'^```\w*\n(.*?)^```', read(path), re.DOTALL | re.M)
  for block in blocks:
    for line in re.sub(r'\s*\\\n\s*', ' ', block).split('\n'):
      line = re.sub(r'^\$ ', '', line).partition('#')[0]
      found = re.search(r'(?:python3? -m dynllm_jax\.main|^dynllm) (.*)', line)
      if found:
        yield shlex.split(re.split(r' && | & ?$|"$', found[1])[0])


@pytest.mark.parametrize('path', DOCS, ids=ids(DOCS))
def test_every_command_has_the_flags_that_there_are(path):
  """Names of flags and modes, values of their kind, config files, systems."""
  known = command_line.flags.FLAGS
  for words in commands(path):
    for word in words:
      word = word.strip('[]')  # of a usage, what may be left out
      assert word.startswith('--'), (word, words)
      name, equals, value = word.removeprefix('--').partition('=')
      if name.startswith('config.'):
        field = name.removeprefix('config.')
        assert field in fields() | {'data.till'}, word
        continue
      assert name in known, word
      if name == 'config':
        file, _, system = config_files.find(value).partition(':')
        if 'FILE' not in file and not file.startswith('my_shop/'):
          assert (ROOT / file).is_file(), word
        if system and 'SYSTEM' not in system and '.' not in system:
          assert system.partition('+')[0] in [
            *config_lib.system_names(),
            'last_items',  # of a walk
          ], word
      elif equals and 'MODE' not in value:
        known[name].parser.parse(value)


def test_commands_are_found():
  assert len(list(commands(ROOT / 'README.md'))) >= 5
  assert [*commands(ROOT / 'docs' / 'facets.md')][0][-1].startswith('--config')


def test_the_python_of_a_page_names_what_there_is():
  blocks = [
    block
    for path in (ROOT / 'README.md', ROOT / 'docs' / 'runs.md')
    for block in re.findall(r'^```python\n(.*?)^```', read(path), re.S | re.M)
  ]
  assert len(blocks) >= 3
  for block in blocks:
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.Attribute):
        whose = ast.unparse(node.value)
        named = whose in ('dj', 'dynllm_jax')
        assert not named or node.attr in [*dynllm_jax.__all__, 'config'], whose


def test_the_readme_is_short():
  assert len(read(ROOT / 'README.md').splitlines()) <= 150
  for name in (ROOT / 'docs' / 'pictures').iterdir():
    assert name.stat().st_size < 150_000, name


def test_the_pages_of_the_site_are_there():
  named = re.findall(r'^  - .+: (\S+\.md)$', read(ROOT / 'mkdocs.yml'), re.M)
  assert len(named) == len(set(named)) > 10
  for name in set(named) - {'index.md'}:  # README.md
    assert (ROOT / 'docs' / name).exists(), name


def test_the_changelog_begins_with_the_version():
  versions = re.findall(r'^## \[([\d.]+)\]', read(ROOT / 'CHANGELOG.md'), re.M)
  assert versions[0] == dynllm_jax.__version__


# ------------------------------------------------------------ architecture


def modules():
  """Every module of the package, as architecture.md names it."""
  package = ROOT / 'dynllm_jax'
  paths = [p for p in package.rglob('*.py') if p.name != '__init__.py']
  return {str(path.relative_to(package)) for path in paths}


def test_every_module_stands_in_the_architecture():
  rows = re.findall(r'^\| `([\w/]+\.py)` \|', read(ARCHITECTURE), re.MULTILINE)
  assert len(rows) == len(set(rows))
  assert set(rows) == modules()


def test_every_name_in_the_architecture_is_in_its_module():
  found = re.findall(r'`([\w/]+\.py)`\s((?:`\w+`(?:, )?)+)', read(ARCHITECTURE))
  assert len(found) > 30
  for path, listed in found:
    text = read(ROOT / 'dynllm_jax' / path)
    for name in re.findall(r'\w+', listed):
      pattern = rf'^ *(?:def |class )?{name}\b(?=[:( ])'
      assert re.search(pattern, text, re.M), (path, name)


def test_every_room_stands_in_the_architecture_in_order_of_its_floor():
  from tests import test_structure

  rooms = re.findall(r'^### `(\w+)/`', read(ARCHITECTURE), re.MULTILINE)
  floors = [
    name
    for name in test_structure.FLOORS
    if (ROOT / 'dynllm_jax' / name / '__init__.py').exists() and name
  ]
  assert rooms == floors


# ------------------------------------------------------------------- walks


def shell_blocks(path):
  return re.findall(r'^```sh\n(.*?)^```', read(path), re.DOTALL | re.MULTILINE)


def section(title):
  """The part of CONTRIBUTING.md under a heading."""
  return re.split(r'^### ', read(CONTRIBUTING), flags=re.MULTILINE)[
    1 + walks().index(title)
  ]


def walks():
  return re.findall(r'^### (.+)$', read(CONTRIBUTING), re.MULTILINE)


def write_files(folder):
  """Every file that CONTRIBUTING.md shows, `path`: above its block."""
  blocks = re.findall(
    r'^`(shop/[^`]+)`:\n\n```\w+\n(.*?)^```',
    read(CONTRIBUTING),
    re.DOTALL | re.MULTILINE,
  )
  for name, content in blocks:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
  return folder / 'shop'


def install(shop):
  """As pip would make the entry points of shop/pyproject.toml known."""
  project = tomllib.loads((shop / 'pyproject.toml').read_text())['project']
  record = shop / f'{project["name"]}-{project["version"]}.dist-info'
  record.mkdir()
  (record / 'METADATA').write_text(
    f'Metadata-Version: 2.1\nName: {project["name"]}\n'
    f'Version: {project["version"]}\n'
  )
  (record / 'entry_points.txt').write_text(
    '\n'.join(
      '\n'.join([f'[{group}]', *(f'{k} = {v}' for k, v in entries.items())])
      for group, entries in project['entry-points'].items()
    )
  )


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """A copy of the checkout, and the files of the walks beside it."""
  for name in ('dynllm_jax', 'configs', 'tests', 'pyproject.toml'):
    source, target = ROOT / name, tmp_path / 'dynllm_jax' / name
    if source.is_dir():
      shutil.copytree(
        source, target, ignore=shutil.ignore_patterns('__pycache__')
      )
    else:
      shutil.copy(source, target)
  write_files(tmp_path)
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('title', walks())
def test_a_walk_ends_as_it_says(title, folder, tmp_path):
  commands = re.findall(
    r'^```sh\n(.*?)^```', section(title), re.DOTALL | re.MULTILINE
  )
  assert commands
  environment = {
    **os.environ,
    'PATH': os.pathsep.join(
      [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
    ),
    'PYTHONPATH': str(folder / 'dynllm_jax'),
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    'JAX_PLATFORMS': 'cpu',
  }
  for block in commands:
    if 'pip install' in block:
      install(folder / 'shop')
      environment['PYTHONPATH'] += os.pathsep + str(folder / 'shop')
    done = subprocess.run(
      [
        'bash',
        '-euo',
        'pipefail',
        '-c',
        re.sub(r'^pip .*$', '', block, flags=re.M),
      ],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert not done.returncode, f'{block}\n{done.stdout}\n{done.stderr}'
    for line in re.findall(r'-m pytest.*', block):
      assert re.search(r'[1-9]\d* passed', done.stdout), line


def test_the_modules_of_the_walks_keep_the_style(tmp_path):
  shop = write_files(tmp_path)
  for arguments in (['check', '--no-cache'], ['format', '--check']):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'ruff', *arguments),
        *('--config', str(ROOT / 'pyproject.toml')),
        *(
          '--config',
          'lint.isort.known-first-party = ["dynllm_jax", "my_shop"]',
        ),
        str(shop / 'my_shop'),
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    assert not done.returncode, done.stdout + done.stderr
