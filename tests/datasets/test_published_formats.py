"""Formats that people have: RecBole, MovieLens, parts, tables, thresholds."""

import gzip

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import dynllm_jax
from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files

START = 1_600_000_000
RATINGS = [(f'{k % 5}', f'{k % 7}', k % 5 + 1, START + k) for k in range(40)]


def write_recbole(folder):
  """`shop.inter` and `shop.item`, as RecBole has them."""
  folder.mkdir(exist_ok=True)
  head = 'user_id:token\titem_id:token\trating:float\ttimestamp:float'
  rows = [f'{u}\t{i}\t{r}.0\t{t}.0' for u, i, r, t in RATINGS]
  (folder / 'shop.inter').write_text('\n'.join([head, *rows]))
  head = 'item_id:token\tmovie_title:token_seq\tgenre:token_seq'
  rows = [f'{k}\tTitle "{k}\tDrama Comedy' for k in range(7)]
  (folder / 'shop.item').write_text('\n'.join([head, *rows]) + '\n')
  (folder / 'shop.user').write_text('user_id:token\tage:token\n0\t25\n')
  return folder


@pytest.mark.parametrize('place', ['shop.inter', ''])
def test_recbole_needs_no_flag(make_config, tmp_path, place):
  folder = write_recbole(tmp_path / 'shop')
  config = make_config(events=str(folder / place).rstrip('/'))
  log = event_log.read(config)
  assert log.users.tolist() == [row[0] for row in RATINGS]
  assert log.items.tolist() == [row[1] for row in RATINGS]
  assert log.times.tolist() == [row[3] for row in RATINGS]
  assert log.titles.tolist() == [f'Title "{k}' for k in range(7)]
  assert set(log.categories) == {'Drama Comedy'}
  config['items'] = 'none'
  assert not len(event_log.read(config).titles)
  config.where = {'rating': '>=4'}
  kept = [row for row in RATINGS if row[2] >= 4]
  assert event_log.read(config).users.tolist() == [row[0] for row in kept]


def test_movielens_1m_needs_no_flag(make_config, tmp_path):
  rows = [f'{u}::{i}::{r}::{t}' for u, i, r, t in RATINGS]
  (tmp_path / 'ratings.dat').write_text('\n'.join(rows))
  movies = [f'{k}::Amélie: "{k}" (2001)::Drama|War' for k in range(7)]
  (tmp_path / 'movies.dat').write_bytes('\n'.join(movies).encode('latin1'))
  config = make_config(events=str(tmp_path / 'ratings.dat'))
  log = event_log.read(config)
  assert log.times.tolist() == [row[3] for row in RATINGS]
  assert log.titles[3] == 'Amélie: "3" (2001)'
  assert log.categories[3] == 'Drama|War'
  config.where = {'rating': '>=4'}
  assert len(event_log.read(config).users) == 16


@pytest.mark.parametrize('zipped', [False, True])
def test_movielens_100k_needs_no_flag(make_config, tmp_path, zipped):
  rows = '\n'.join(f'{u}\t{i}\t{r}\t{t}' for u, i, r, t in RATINGS)
  name = 'u.data.gz' if zipped else 'u.data'
  content = gzip.compress(rows.encode()) if zipped else rows.encode()
  (tmp_path / name).write_bytes(content)
  movies = [
    f'{k}|Café {k} (1995)|01-Jan-1995||http://us.imdb.com/{k}'
    + '|0' * 18
    + '|1'
    for k in range(7)
  ]
  (tmp_path / 'u.item').write_bytes('\n'.join(movies).encode('latin1'))
  config = make_config(events=str(tmp_path / name))
  log = event_log.read(config)
  assert log.users.tolist() == [row[0] for row in RATINGS]
  assert log.titles[6] == 'Café 6 (1995)'


def test_a_file_of_a_known_name_may_be_another(make_config, write):
  rows = 'user_id,item_id,timestamp\n' + event_files.GOOD
  for name in ('ratings.dat', 'u.data'):
    log = event_log.read(make_config(events=write(name, rows)))
    assert log.users.tolist() == ['u1', 'u2']


def test_two_colons_elsewhere(make_config, write):
  path = write('x.txt', 'user_id::item_id::timestamp\nu::i:j::1600000000\n')
  event_files.check(
    event_log.read(make_config(events=path)), ['u'], ['i:j'], [START]
  )


# --------------------------------------------------------------- many files


@pytest.fixture
def parts(tmp_path):
  """A folder of Parquet files as Spark writes it, by days."""
  folder = tmp_path / 'log [1]'
  frame = pd.DataFrame(RATINGS, columns=['u', 'i', 'rating', 't'])
  for day, half in enumerate((frame[:25], frame[25:])):
    place = folder / f'day=2020-09-1{day}'
    place.mkdir(parents=True)
    if day:  # Another type: numbers where the first part has texts.
      half = half.assign(u=half.u.astype(float), t=half.t.astype(float) + 0.5)
    half.to_parquet(place / 'part-0.snappy.parquet')
  (folder / '_SUCCESS').write_text('')
  (folder / '.part.crc').write_text('x')
  return folder


COLUMNS = {'user_column': 'u', 'item_column': 'i', 'time_column': 't'}


@pytest.mark.parametrize('pattern', ['', '*/*.parquet', '**/part-*'])
def test_parts_are_one_log(make_config, parts, pattern):
  place = f'{parts}/{pattern}'.rstrip('/')
  config = make_config(events=place, **COLUMNS)
  log = event_log.read(config)
  assert log.users.tolist() == [row[0] for row in RATINGS]
  assert log.times.tolist() == [row[3] for row in RATINGS]
  assert '(2 files)' in log.source
  if not pattern:
    config.where = {'day': '2020-09-11'}
    assert len(event_log.read(config).users) == 15


def test_what_is_wrong_with_parts_is_named(make_config, parts, tmp_path):
  config = make_config(events=f'{parts}/*.csv', **COLUMNS)
  with pytest.raises(InputError, match='matches no file'):
    event_log.read(config)
  (tmp_path / 'mixed').mkdir()
  for name in ('a.csv', 'b.parquet'):
    (tmp_path / 'mixed' / name).write_text('x')
  config.events = str(tmp_path / 'mixed')
  with pytest.raises(InputError, match='several formats .csv, parquet'):
    event_log.read(config)
  rows = ['u,i,t', *(f'u,i,{START + k}' for k in range(3))]
  (tmp_path / 'mixed' / 'b.parquet').unlink()
  (tmp_path / 'mixed' / 'a.csv').write_text('\n'.join(rows))
  (tmp_path / 'mixed' / 'b.csv').write_text('\n'.join([*rows, 'u,i,soon']))
  with pytest.raises(InputError, match=r'b.csv: row 4 \(line 5\)'):
    event_log.read(config)


def test_another_encoding_is_declared(make_config, write):
  text = 'user_id,item_id,timestamp\nZoë,i,1600000000\n'
  for name in ('latin1', 'cp1252', 'utf-16'):
    path = write('log.csv', text.encode(name))
    config = make_config(events=path)
    with pytest.raises(InputError, match='config.data.encoding'):
      event_log.read(config)
    config.encoding = name
    event_files.check(event_log.read(config), ['Zoë'], ['i'], [START])


# ------------------------------------------------------ tables, thresholds


@pytest.mark.parametrize('kind', [pd.DataFrame, pl.DataFrame, pa.table])
def test_tables_of_a_program(tmp_path, kind, capsys):
  columns = [list(column) for column in zip(*RATINGS)]
  events = kind(
    dict(zip(['user_id', 'item_id', 'rating', 'timestamp'], columns))
  )
  items = kind({'item_id': [str(k) for k in range(7)], 'name': ['x'] * 7})
  config = config_lib.default('repeat')
  config.data.dir = str(tmp_path)
  config.data.min_user_items = config.data.min_item_users = 1
  log = dynllm_jax.load(config, events=events, items=items)
  assert log.num_events == 40 and set(log.titles[1:]) == {'x'}
  again = dynllm_jax.load(config, events=events, items=items)
  assert again.fingerprint == log.fingerprint
  assert 'loaded from' in capsys.readouterr().out
  assert config.data.events == ''
  with pytest.raises(InputError, match='events: a int cannot be read'):
    dynllm_jax.load(config, events=5)
  mixed = pd.DataFrame({'user_id': ['a', 1]})
  with pytest.raises(InputError, match='items: .*each column of one type'):
    dynllm_jax.load(config, events=events, items=mixed)


@pytest.mark.parametrize(
  'table',
  [
    'events.csv',
    [('u', 'i', START)],
    # Arrow would take the index of such a frame for users, items and times.
    pd.DataFrame(
      {'user_id': ['u'] * 5, 'item_id': range(5), 'timestamp': range(5)},
      index=range(START, START + 5),
    ).to_dict(),
    {'user_id': {'u'}, 'item_id': {'i'}, 'timestamp': {START}},
    pl.LazyFrame({'user_id': ['u'], 'item_id': ['i'], 'timestamp': [START]}),
  ],
)
def test_what_is_no_table_is_refused(tmp_path, table):
  config = config_lib.default('repeat')
  config.data.dir = str(tmp_path)
  with pytest.raises(InputError, match='cannot be read as a table.*allowed'):
    dynllm_jax.load(config, events=table)


@pytest.mark.parametrize(
  'where, kept',
  [
    ({'r': '>=4'}, [4, 5]),
    ({'r': ' > 4 '}, [5]),
    ({'r': '<=2'}, [1, 2]),
    ({'r': '<1.5'}, [1]),
    ({'kind': '!=odd'}, [2, 4]),
    ({'r': 3}, [3]),
    ({'r': [1, 2]}, [1, 2]),
    ({'r': '>2', 'kind': 'odd'}, [3, 5]),
  ],
)
@pytest.mark.parametrize('form', [int, float, '{}.0'.format])
def test_thresholds(make_config, tmp_path, where, kept, form):
  values = [1, 2, 3, 4, 5]
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=[str(v) for v in values],
    item_id=['i'] * 5,
    timestamp=[START] * 5,
    r=[form(v) for v in values],
    kind=[('even', 'odd')[v % 2] for v in values],
  )
  if callable(form) and form not in (int, float) and '2' in str(where):
    where = {'r': '>=1'}
    kept = values
  log = event_log.read(make_config(events=path, where=where))
  wanted = (
    values if where == {'r': '!=3'} and form not in (int, float) else kept
  )
  assert log.users.tolist() == [str(v) for v in wanted]


def test_a_threshold_is_a_number(make_config, write):
  path = write('log.csv', 'user_id,item_id,timestamp\n' + event_files.GOOD)
  config = make_config(events=path, where={'item_id': '>=high'})
  with pytest.raises(InputError, match="config.data.where.*'>=4'"):
    loading.load(config)


# ----------------------------------------------------------------- the core


def test_what_the_core_leaves_out_is_said_in_one_line(make_config, write):
  rng = np.random.default_rng(0)
  rows = [
    f'u{rng.integers(20)},i{int(30 * rng.random() ** 3)},{START + k}'
    for k in range(200)
  ]
  path = write('log.csv', '\n'.join(['user_id,item_id,timestamp', *rows]))
  lines = []
  log = loading.load(
    make_config(events=path, min_user_items=4, min_item_users=4), lines.append
  )
  (line,) = [line for line in lines if 'are kept' in line]
  left_out = 200 - log.num_events
  assert left_out > 0
  assert f'{log.num_events / 200:.1%} of the events are kept' in line
  assert f'leaves out {left_out:,} of 200 events' in line
  assert 'config.data.min_user_items' in line
