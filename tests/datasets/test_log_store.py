"""`datasets.load`: prepared once, kept whole, never used when damaged."""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import pathlib

import numpy as np
import pytest

from dynllm_jax import plugins
from dynllm_jax.datasets import loading
from dynllm_jax.datasets import log_store
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError


@pytest.fixture
def config(make_config, write):
  rows = ''.join(
    f'u{n % 97},i{n % 89},{1291191960 + n // 3}\n' for n in range(9_000)
  )
  return make_config(
    events=write('log.csv', 'user_id,item_id,timestamp\n' + rows),
    items=write(
      'items.csv',
      'item_id,title,category,brand\n'
      + ''.join(
        f'i{n},Títle {n},c > {n % 5},{"" if n % 2 else "b"}\n'
        for n in range(89)
      ),
    ),
  )


def _equal(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    assert type(x) is type(y), field.name
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype and np.array_equal(x, y), field.name
    else:
      assert x == y, field.name


def _silent(line):
  del line


def _folders(config):
  return list((pathlib.Path(config.dir) / 'event_logs').iterdir())


def test_the_second_run_reads_the_store(config, monkeypatch):
  lines = []
  first = loading.load(config, lines.append)
  assert any('rows read: 9,000' in line for line in lines)
  assert any('training events' in line for line in lines)
  monkeypatch.setattr(event_log, 'read', None)  # A call would fail.
  again = []
  _equal(first, loading.load(config, again.append))
  assert any('loaded from' in line for line in again)
  assert [p.name for p in _folders(config)] == [first.fingerprint]


def test_the_fingerprint_follows_content_and_preparation(
  config, tmp_path, write
):
  def key(**fields):
    changed = config.copy_and_resolve_references()
    changed.update(fields)
    return loading.load(changed, _silent).fingerprint

  first = key()
  text = pathlib.Path(config.events).read_text()
  same = [
    key(dir=str(tmp_path / 'elsewhere')),
    key(events=write('moved.csv', text)),
  ]
  other = [
    key(events=write('more.csv', text + 'u,i,1291199999\n')),
    key(min_user_items=2),
    key(items=''),
    key(sample_users=0.5),
  ]
  assert set(same) == {first}
  assert len({first, *other}) == 5


@pytest.mark.parametrize(
  'damage',
  [
    'records',
    'cut',
    'flipped',
    'info',
    'features',
    'metadata',
    'rows',
    'train_end',
    'nameless',
    'empty',
  ],
)
def test_damage_is_found_and_mended(config, damage):
  first = loading.load(config, _silent)
  folder = _folders(config)[0]
  records = next(folder.glob('*.array_record*'))
  if damage == 'records':
    records.unlink()
  elif damage == 'cut':
    records.write_bytes(records.read_bytes()[:-70_000])
  elif damage == 'flipped':
    content = bytearray(records.read_bytes())
    content[200] ^= 255
    records.write_bytes(content)
  elif damage in ('rows', 'train_end', 'nameless'):
    path = folder / 'metadata.json'
    metadata = json.loads(path.read_text())
    if damage == 'rows':
      metadata['rows']['users'] += 1
    elif damage == 'train_end':  # a split that was never made
      metadata['train_end'] += 1
    else:
      metadata['counxs'] = metadata.pop('counts')
    path.write_text(json.dumps(metadata))
  elif damage == 'empty':
    for path in folder.iterdir():
      path.unlink()
  else:
    next(folder.glob(f'*{damage}*.json')).unlink()
  lines = []
  _equal(first, loading.load(config, lines.append))
  assert sum('is damaged' in line for line in lines) == 1
  lines.clear()
  loading.load(config, lines.append)
  assert any('loaded from' in line for line in lines)
  assert [p.name for p in _folders(config)] == [first.fingerprint]


def test_processes_at_once_all_succeed(config):
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
    logs = list(
      pool.map(
        functools.partial(loading.load, report=_silent), [config, config]
      )
    )
  _equal(*logs)
  assert len(_folders(config)) == 1


def test_a_second_writer_keeps_the_sound_copy(config):
  log = loading.load(config, _silent)
  folder = _folders(config)[0]
  written = (folder / 'metadata.json').stat().st_mtime_ns
  log_store.save(log, folder)
  assert (folder / 'metadata.json').stat().st_mtime_ns == written
  (folder / 'metadata.json').unlink()
  log_store.save(log, folder)
  _equal(log, log_store.load(folder, log.fingerprint))
  assert _folders(config) == [folder]


def test_errors_leave_nothing_behind(config, monkeypatch):
  bad = config.copy_and_resolve_references()
  bad.min_user_items = 10_000
  with pytest.raises(InputError, match='nothing is left'):
    loading.load(bad, _silent)
  assert not pathlib.Path(config.dir).exists()
  monkeypatch.setattr(log_store, '_place', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    loading.load(config, _silent)
  assert not _folders(config)


def test_a_data_folder_that_cannot_be_written(config):
  config.dir = config.events
  with pytest.raises(InputError, match='config.data.dir.*cannot be written'):
    loading.load(config, _silent)


def test_a_file_that_changes_while_it_is_read(config, monkeypatch):
  read = event_log.read

  def changed(data_config):
    with open(config.events, 'a', encoding='utf-8') as file:
      file.write('u1,i1,1291199999\n')
    return read(data_config)

  monkeypatch.setattr(event_log, 'read', changed)
  with pytest.raises(
    InputError, match='config.data.events: .* was changed while'
  ):
    loading.load(config, _silent)
  assert not pathlib.Path(config.dir, 'event_logs').exists()


@pytest.mark.parametrize(
  'field,value',
  [
    ('where', {'a': {'x'}}),
    ('bad_rows', 'skip'),
    ('time_unit', 'h'),
    ('source', 'nowhere'),
    ('min_user_items', -1),
    ('min_item_users', -1),
    ('sample_users', 0.0),
    ('sample_users', 1.5),
    ('sample_users', float('nan')),
    ('sample_seed', -1),
    ('simulation_seed', -1),
  ],
)
def test_bad_options(config, field, value):
  config[field] = value
  with pytest.raises(InputError) as caught:
    loading.load(config, _silent)
  assert f'data.{field}' in str(caught.value)
  assert str(value) in str(caught.value)


def test_sources_are_found_by_file_name(make_config):
  names = plugins.names(plugins.SOURCES)
  assert {'event_log', 'online_retail', 'amazon_reviews', 'simulated'} <= set(
    names
  )
  assert 'prepare' not in names and 'store' not in names
  with pytest.raises(InputError, match=', '.join(names)):
    loading.load(make_config(source='prepare'), _silent)


def test_simulated_logs_are_stored_too(make_config):
  config = make_config(source='simulated')
  first, again = (loading.load(config, _silent) for _ in range(2))
  _equal(first, again)
  assert first.simulated


def test_a_named_log_stands_in_for_a_simulated_one(make_config):
  with pytest.raises(InputError, match='config.data.events: /no/such/file'):
    loading.load(
      make_config(source='simulated', events='/no/such/file'), _silent
    )


def test_the_data_folder(make_config, monkeypatch, tmp_path):
  assert loading.data_folder(make_config(dir='/d')) == pathlib.Path('/d')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert loading.data_folder(make_config(dir='')) == tmp_path / 'dynllm_jax'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert (
    loading.data_folder(make_config(dir=''))
    == tmp_path / '.cache' / 'dynllm_jax'
  )
