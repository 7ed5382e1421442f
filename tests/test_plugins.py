"""What every plug-in must hold to; a new one is found by itself.

Systems have a contract of their own, tests/models/test_contract.py. Those of
installed distributions (plugins.py) are found as well.
"""

import dataclasses
import inspect
import json

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax import plugins
from dynllm_jax.datasets import loading
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError
from tests.testing import logs

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


FUNCTIONS = 'def files(data_config): ...\ndef read(data_config): ...\n'


@pytest.mark.parametrize('name', ['shop_a.till', 'till_without_a_package'])
def test_a_module_anywhere_is_a_plug_in(module_file, name):
  module_file(name, FUNCTIONS)
  module = plugins.load(plugins.SOURCES, name, 'data.source')
  assert module.__name__ == name
  assert name not in plugins.names(plugins.SOURCES)


@pytest.mark.parametrize(
  'name, text, error',
  [
    ('shop_b.till', 'def files(): ...', "data.source: .*no function 'read'"),
    ('shop_c.till', '1 / 0', 'data.source: .*ZeroDivisionError'),
    ('shop_d.till', 'import no_such_module', 'data.source: .*no_such_module'),
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


SOURCE = """
import numpy as np
from dynllm_jax.types import RawLog

def files(data_config):
  return []

def read(data_config):
  few = np.array(['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'], object)
  none = np.array([], object)
  return RawLog(few, few, np.arange(9), none, none, none, none, {}, 'a till')
"""


def test_a_source_of_another_version_reads_again(module_file, tmp_path):
  config = config_lib.default().data
  config.source, config.dir = 'shop_e.till', str(tmp_path / 'store')
  config.min_user_items = config.min_item_users = 1
  module_file('shop_e.till', SOURCE)
  lines = []
  for version, again in ((1, False), (1, True), (2, False)):
    module = plugins.load(plugins.SOURCES, 'shop_e.till', 'data.source')
    module.VERSION = version
    lines.clear()
    loading.load(config, lines.append)
    assert any('loaded from' in line for line in lines) == again
