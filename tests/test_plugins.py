"""What every plug-in must hold to; a new one is found by itself.

Systems have a contract of their own, tests/models/test_contract.py. Those of
installed distributions (plugins.py) are found as well.
"""

import dataclasses
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax import plugins
from dynllm_jax.datasets import loading
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError
from tests.testing import commands
from tests.testing import logs
from tests.testing import ROOT

# What each function is called with, wherever the package calls it.
CALLS = {
  plugins.SYSTEMS: {'default_config': 0, 'build': 1},
  plugins.SOURCES: {'files': 1, 'read': 1},
  plugins.ENCODERS: {'encode': 3, 'identity': 2, 'describe': 1},
  plugins.WRITERS: {'write': 5, 'plan': 5, 'identity': 2, 'describe': 1},
}
ALL = [(kind, name) for kind in CALLS for name in plugins.names(kind)]


def load(kind, name):
  """A plug-in, and the part of the configuration that it is called with."""
  config = config_lib.default()
  part = {
    plugins.SOURCES: config.data,
    plugins.ENCODERS: config.facets.encoder,
    plugins.WRITERS: config.facets.writer,
  }[kind]
  if kind is plugins.SOURCES:
    part.source = name
  else:
    part.name = name
  return plugins.load(kind, name, 'a field'), part


def starts_alone(kind, name):
  """Whether a plug-in does its work without a file or a model being named."""
  module, part = load(kind, name)
  first = module.files if kind is plugins.SOURCES else module.identity
  try:
    first(part)
    return True
  except InputError:
    return False


def those(kind, alone):
  return [n for n in plugins.names(kind) if starts_alone(kind, n) == alone]


@pytest.mark.parametrize(
  'kind, name', ALL, ids=[f'{kind.word}-{name}' for kind, name in ALL]
)
def test_functions_take_what_they_are_called_with(kind, name):
  module = plugins.load(kind, name, 'a field')
  assert module.__doc__
  assert set(CALLS[kind]) == set(kind.functions)
  for function, count in CALLS[kind].items():
    inspect.signature(getattr(module, function)).bind(*range(count))
  if kind in (plugins.ENCODERS, plugins.WRITERS):
    assert isinstance(module.VERSION, int)


@pytest.mark.parametrize(
  'kind, name, field',
  [
    (kind, name, field)
    for kind, field in (
      (plugins.SOURCES, 'data.events'),
      (plugins.ENCODERS, 'facets.encoder.'),
      (plugins.WRITERS, 'facets.writer.'),
    )
    for name in those(kind, alone=False)
  ],
)
def test_what_is_missing_is_named(kind, name, field):
  module, part = load(kind, name)
  work = {
    plugins.SOURCES: lambda: module.read(part),
    plugins.ENCODERS: lambda: module.encode(part, ['a text']),
    plugins.WRITERS: lambda: module.write(part, *profiles_of_a_log()),
  }[kind]
  with pytest.raises(InputError, match=field):
    work()


@pytest.mark.parametrize('name', those(plugins.SOURCES, alone=True))
def test_a_source_gives_a_log(name):
  module, part = load(plugins.SOURCES, name)
  part.size = 'demo'
  raw = module.read(part)
  assert len(raw.users) == len(raw.items) == len(raw.times) > 0
  assert raw.times.dtype == np.int64
  table = (raw.item_ids, raw.titles, raw.categories, raw.brands)
  assert len({len(column) for column in table}) == 1
  assert len(set(raw.item_ids)) == len(raw.item_ids)
  assert raw.source
  json.dumps(raw.counts)


@pytest.mark.parametrize('name', those(plugins.ENCODERS, alone=True))
def test_an_embedding_depends_on_its_text_alone(name):
  module, part = load(plugins.ENCODERS, name)
  texts = ['rose candle', '', 'red lamp', 'rose candle']
  table = module.encode(part, texts)
  assert table.dtype == np.float16
  assert table.shape[0] == len(texts)
  assert not table[1].any()
  np.testing.assert_array_equal(table[0], table[3])
  assert not np.array_equal(table[0], table[2])
  for text, row in zip(texts, table):
    np.testing.assert_array_equal(module.encode(part, [text])[0], row)
  assert module.encode(part, []).shape == (0, table.shape[1])


def profiles_of_a_log():
  log = logs.random_log(0)
  return log, windows.profiles(log, windows.window_seconds(10))


def facets_of(written):
  """The texts of every profile, [rows][4]."""
  return [[written.texts[k] for k in row] for row in written.index]


@pytest.mark.parametrize('name', those(plugins.WRITERS, alone=True))
def test_a_writer_reads_the_purchases_of_its_window_alone(name):
  module, part = load(plugins.WRITERS, name)
  log, profiles = profiles_of_a_log()
  written = module.write(part, log, profiles)
  assert written.texts[0] == writing.UNKNOWN
  assert len(set(written.texts)) == len(written.texts) and all(written.texts)
  assert written.index.shape == (len(profiles), len(FACETS))
  assert written.index.dtype == written.num_read.dtype == np.int32
  assert (written.num_read >= 1).all()
  assert (written.num_read <= profiles.last - profiles.first).all()

  texts = facets_of(written)
  rng = np.random.default_rng(0)
  for row in range(len(profiles)):
    own = profiles.order[profiles.first[row] : profiles.last[row]]
    items = rng.permutation(log.items)
    items[own] = log.items[own]
    other = module.write(part, dataclasses.replace(log, items=items), profiles)
    assert facets_of(other)[row] == texts[row]


@pytest.mark.parametrize('name', those(plugins.WRITERS, alone=True))
def test_a_plan_writes_nothing(name, tmp_path):
  module, part = load(plugins.WRITERS, name)
  lines = []
  module.plan(part, *profiles_of_a_log(), str(tmp_path), lines.append)
  assert lines and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'kind, name',
  [
    (kind, name)
    for kind in (plugins.ENCODERS, plugins.WRITERS)
    for name in those(kind, alone=True)
  ],
)
def test_an_identity_is_json_with_the_version(kind, name):
  module, part = load(kind, name)
  found = module.identity(part)
  assert json.loads(json.dumps(found)) == found
  assert module.VERSION in found.values()
  assert module.describe(part)


# ------------------------------------------------- modules from elsewhere


@pytest.fixture
def module_file(tmp_path, monkeypatch):
  """`module_file(name, text)`: a module of a package of one's own."""
  monkeypatch.syspath_prepend(tmp_path)

  def make(name, text):
    file = tmp_path.joinpath(*name.split('.')).with_suffix('.py')
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)

  return make


SOURCE = (
  'VERSION = 1\ndef files(data_config): ...\ndef read(data_config): ...\n'
)


@pytest.mark.parametrize('name', ['shop_a.till', 'till_without_a_package'])
def test_a_module_anywhere_is_a_plug_in(module_file, name):
  module_file(name, SOURCE)
  module = plugins.load(plugins.SOURCES, name, 'data.source')
  assert module.__name__ == name
  assert name not in plugins.names(plugins.SOURCES)


@pytest.mark.parametrize(
  'name, text, error',
  [
    ('shop_b.till', 'def files(): ...', "data.source: .*no function 'read'"),
    ('shop_c.till', '1 / 0', 'data.source: .*ZeroDivisionError'),
    ('shop_d.till', 'import no_such_module', 'data.source: .*no_such_module'),
    (
      'shop_e.till',
      SOURCE.replace('1', '"new"'),
      'data.source: .*has no VERSION; sources from outside have VERSION = 1',
    ),
  ],
)
def test_a_module_that_cannot_serve_is_named(module_file, name, text, error):
  module_file(name, text)
  with pytest.raises(InputError, match=error):
    plugins.load(plugins.SOURCES, name, 'data.source')


@pytest.mark.parametrize('name', ['no_such_thing', 'no_such.thing', '', None])
def test_an_unknown_name_is_refused(name):
  with pytest.raises(InputError, match='data.source: .*event_log, '):
    plugins.load(plugins.SOURCES, name, 'data.source')


def test_a_short_name_of_an_installed_distribution(module_file, tmp_path):
  """As `pip install` leaves it: an entry point beside the module."""
  kind = plugins.SOURCES._replace(group='shop_f.sources')
  module_file('shop_f.till', SOURCE)
  about = tmp_path / 'shop_f-1.0.dist-info'
  about.mkdir()
  about.joinpath('METADATA').write_text('Name: shop_f\nVersion: 1.0\n')
  about.joinpath('entry_points.txt').write_text(
    f'[{kind.group}]\ntill = shop_f.till\n'
  )
  assert set(plugins.names(kind)) - set(plugins.names(plugins.SOURCES)) == {
    'till'
  }
  module = plugins.load(kind, 'till', 'data.source')
  assert module.__name__ == 'shop_f.till'
  assert plugins.version(kind, module) == {
    'module': 'shop_f.till',
    'module_version': 1,
  }


SHOP = {
  'config': """
from dynllm_jax import config as config_lib

def get_config(arg=''):
  config = config_lib.default(arg)
  config.data.source = 'shop.till'
  config.data.min_user_items = config.data.min_item_users = 1
  config.facets.writer.name = 'shop.clerk'
  config.facets.encoder.name = 'shop.lengths'
  config.eval.compare, config.eval.ks = (), (1, 5)
  return config
""",
  'till': """
import numpy as np
from dynllm_jax.types import RawLog

VERSION = 1

def files(data_config):
  return []

def read(data_config):
  number = np.arange(90)
  names = np.array([f'name {n}' for n in range(7)], object)
  users, items, times = names[number % 7], names[number % 5], 9_000 * number
  table = [names] * 4
  return RawLog(users, items, times, *table, {'receipts': 90}, 'a till')
""",
  'clerk': """
import numpy as np
from dynllm_jax.facets import writing

VERSION = 1

def write(writer_config, log, profiles, store='', report=print):
  ones = np.ones(len(profiles), np.int32)
  return writing.collect([('a', 'b', 'c', '')] * len(profiles), ones)

def plan(writer_config, log, profiles, store='', report=print):
  report('nothing')

def identity(writer_config, store=''):
  return {'name': 'clerk'}

def describe(writer_config):
  return 'a clerk'
""",
  'lengths': """
import numpy as np

VERSION = 1

def encode(encoder_config, texts, store=''):
  lengths = np.array([len(text) for text in texts], np.float16)
  return np.stack([lengths, lengths], axis=1)

def identity(encoder_config, store=''):
  return {'name': 'lengths'}

def describe(encoder_config):
  return 'lengths'
""",
  'newest': """
import jax.numpy as jnp
import ml_collections
from dynllm_jax.bases import counts
from dynllm_jax.types import System

def default_config():
  return ml_collections.ConfigDict()

def build(config):
  def init(key, inputs, capacity):
    return {}, jnp.zeros([inputs.num_items + 1])

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    return counts.embeddings(users, items, memory)

  def update(params, memory, inputs, pending):
    events = pending.events
    rows = counts.rows_to_write(events.items, events.mask)
    return memory.at[rows].max(events.times, mode='drop')

  return System('none', True, init, jnp.zeros_like, embed, update)
""",
}


def test_a_source_of_another_version_reads_again(module_file, tmp_path):
  config = config_lib.default().data
  config.source, config.dir = 'shop_g.till', str(tmp_path / 'store')
  config.min_user_items = config.min_item_users = 1
  module_file('shop_g.till', SHOP['till'])
  lines = []
  for version, again in ((1, False), (1, True), (2, False)):
    module = plugins.load(plugins.SOURCES, 'shop_g.till', 'data.source')
    module.VERSION = version  # as if its author had raised it
    lines.clear()
    loading.load(config, lines.append)
    assert any('loaded from' in line for line in lines) == again


@pytest.mark.slow
def test_a_run_of_which_all_plug_ins_are_from_outside(tmp_path):
  """It gives a result, and newer code is never answered from old files."""
  folder = tmp_path / 'shop'
  folder.mkdir()
  for name, text in SHOP.items():
    (folder / f'{name}.py').write_text(text)

  def run(*args):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'dynllm_jax.main', *args),
        f'--config={folder}/config.py:shop.newest',
        f'--config.data.dir={tmp_path / "data"}',
      ],
      cwd=tmp_path,
      env={**commands.on_devices(1), 'PYTHONPATH': f'{tmp_path}:{ROOT}'},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr

  written = run('--workdir=run')
  assert 'receipts: 90' in written and 'data: stored in' in written
  found = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert found['test']['recall@5'] == 1.0  # there are five items
  assert 'data: loaded from' in run('--mode=facets')

  def made():
    kinds = ('event_logs', 'facets', 'item_text')
    return [len(list((tmp_path / 'data' / kind).iterdir())) for kind in kinds]

  assert made() == [1, 1, 1]
  # What follows from the module is made anew, and all that follows from that.
  for name, expected in (
    ('clerk', [1, 2, 1]),
    ('lengths', [1, 3, 2]),
    ('till', [2, 4, 3]),
  ):
    path = folder / f'{name}.py'
    path.write_text(path.read_text().replace('VERSION = 1', 'VERSION = 2'))
    run('--mode=facets')
    assert made() == expected, name
