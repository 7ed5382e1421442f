"""JSON whose keys come late, texts that were cut, logs that moved.

More of the kinds of test_nothing_is_lost.py, each a small file with its right
value.
"""

import gzip
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets import loading
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files

START = 1_600_000_000
HEADER = event_files.HEADER
ROWS = [f'u{k % 3},i{k % 4},{START + k}\n' for k in range(12)]
EVENTS = HEADER + ''.join(ROWS)
BY_POSITION = {'user_column': 0, 'item_column': 1, 'time_column': 2}


def silent(config):
  """The prepared log."""
  return loading.load(config, lambda line: None)


# ------------------------------------------------------------ keys come late


def events(count=1300):
  return [
    {'user_id': f'u{k % 7}', 'item_id': f'i{k}', 'timestamp': START + k}
    for k in range(count)
  ]


def write_as(kind, rows, tmp_path):
  """Rows as a file of JSON of some kind; its path."""
  if kind == 'array':
    name, text = 'log.json', json.dumps(rows)
  elif kind == 'indented':
    name, text = 'log.json', json.dumps(rows, indent=1)
  else:
    between = '\r\n' if kind == 'crlf' else '\n'
    name, text = f'log.{kind.replace("crlf", "jsonl")}', ''
    text = between.join(map(json.dumps, rows)) + between
  content = text.encode()
  content = gzip.compress(content) if kind.endswith('gz') else content
  (tmp_path / name).write_bytes(content)
  return str(tmp_path / name)


@pytest.mark.parametrize(
  'kind', ['jsonl', 'ndjson', 'jsonl.gz', 'json', 'array', 'indented', 'crlf']
)
@pytest.mark.parametrize('late', [1, 1024, 1299])
def test_a_key_may_come_first_in_any_row(make_config, tmp_path, kind, late):
  rows = events()
  for row in rows[late:]:
    row['gift'] = 'yes'
  path = write_as(kind, rows, tmp_path)
  config = make_config(events=path, where={'gift': 'yes'})
  assert len(event_log.read(config).users) == len(rows) - late


@pytest.mark.parametrize(
  'early, late, read',
  [
    (None, 'Acme', 'Acme'),
    ('', 'Acme', 'Acme'),
    (7, 'Acme', 'Acme'),
    (1.5, 'Acme', 'Acme'),
    (True, 'Acme', 'Acme'),
    ('B', ['Acme', 'Corp'], 'Acme > Corp'),
    (['B'], 'Acme', 'Acme'),
    ([], ['Acme'], 'Acme'),
    ([['A', 'B']], ['Acme'], 'Acme'),
    ('B', 12.0, '12'),
    (1, 2**60 + 1, str(2**60 + 1)),
  ],
)
def test_a_late_value_of_another_type(make_config, tmp_path, early, late, read):
  items = [
    {'item_id': f'i{k}', 'title': 't', 'brand': early} for k in range(1300)
  ]
  items[-1]['brand'] = late
  path = write_as('jsonl', events(), tmp_path)
  (tmp_path / 'items').mkdir()
  table = write_as('jsonl', items, tmp_path / 'items')
  log = event_log.read(make_config(events=path, items=table))
  assert log.brands[-1] == read and log.item_ids[-1] == 'i1299'


def test_ids_and_times_that_come_late_as_other_types(make_config, tmp_path):
  rows = events()
  rows[-1] = {'timestamp': float(START + 9999), 'user_id': 5, 'item_id': '7'}
  log = event_log.read(make_config(events=write_as('jsonl', rows, tmp_path)))
  assert (log.users[-1], log.items[-1]) == ('5', '7')
  assert log.times[-1] == START + 9999
  del rows[-1]['item_id']
  config = make_config(events=write_as('jsonl', rows, tmp_path))
  with pytest.raises(InputError, match='row 1300.*item_id.*is missing'):
    event_log.read(config)


# ------------------------------------------------------------ cut texts


@pytest.mark.parametrize(
  'text, read',
  [
    (r'a \ud83d', 'a \ufffd'),
    (r'\uDE00', '\ufffd'),
    (r'\ud83d\ud83d\ude00', '\ufffd\U0001f600'),
    (r'a \ud83dA', 'a \ufffdA'),
    (r'a \ud83d\u0041', 'a \ufffdA'),
    (r'\\ud83d', r'\ud83d'),
    (r'\\\ud83d x', '\\\ufffd x'),
    (r'\ude00\ud83d', '\ufffd\ufffd'),
    (r'\u0041\u00e9', 'A\u00e9'),
    (r'caf\u0065\u0301 \ud83c', 'cafe\u0301 \ufffd'),
  ],
)
@pytest.mark.parametrize(
  'name', ['items.jsonl', 'items.json', 'items.jsonl.gz']
)
def test_half_a_character_in_every_column(make_config, write, text, read, name):
  rows = [f'{{"item_id": "i{k}", "title": "{k}"}}' for k in (0, 2, 3)]
  rows.insert(1, f'{{"item_id": "i1", "title": "{text}", "brand": ["{text}"]}}')
  whole = (
    '[' + ', '.join(rows) + ']' if name.endswith('.json') else '\n'.join(rows)
  )
  log = event_log.read(
    make_config(events=write('log.csv', EVENTS), items=write(name, whole))
  )
  assert (log.titles[1], log.brands[1]) == (read, read)
  assert log.titles.tolist()[::2] == ['0', '2']


@pytest.mark.parametrize('field', ['user_id', 'item_id'])
def test_ids_that_were_cut_do_not_become_one(make_config, write, field):
  rows = [
    json.dumps({'user_id': 'u', 'item_id': 'i', 'timestamp': START + k})
    for k in range(4)
  ]
  for at, half in ((1, r'\ud83d'), (2, r'\ud83e')):
    row = json.loads(rows[at]) | {field: 'HALF'}
    rows[at] = json.dumps(row).replace('HALF', f'x{half}')
  path = write('log.jsonl', '\n'.join(rows))
  with pytest.raises(InputError, match=f'row 2.*{field}.*half a character'):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  assert log.times.tolist() == [START, START + 3]


# ------------------------------------------------------------- long cells


LONG = 'x' * 140_000


@pytest.mark.parametrize(
  'name, content, sizes',
  [
    ('items.csv', f'item_id,title\ni0,"{LONG}, ""q"""\ni1,b\n', [140_005, 1]),
    (
      'items.csv',
      f'item_id,title\r\ni0,{LONG}\r\ni1,{LONG}\r\n',
      [140_000] * 2,
    ),
    ('items.csv', f'item_id,title\ni0,"a\n{LONG}"\ni1,b\n', [140_002, 1]),
    ('items.csv', f'item_id,title\ni0,{"日" * 140_000}\ni1,b\n', [140_000, 1]),
    ('items.csv.gz', f'item_id;title\ni0;{LONG}\ni1;b\n', [140_000, 1]),
    ('items.dat', f'item_id::title\ni0::{LONG}\ni1::b\n', [140_000, 1]),
    (
      'items.json',
      f'[{{"item_id": "i0", "title": "{LONG}"}},'
      ' {"item_id": "i1", "title": "b"}]',
      [140_000, 1],
    ),
    (
      'items.ndjson',
      f'{{"item_id": "i0", "note": "{LONG}", "title": "a"}}\n'
      '{"item_id": "i1", "title": "b"}\n',
      [1, 1],
    ),
    ('items.csv', f'{LONG},item_id,title\na,i0,b\nc,i1,d\n', [1, 1]),
  ],
)
def test_cells_and_names_may_be_long(make_config, write, name, content, sizes):
  log = event_log.read(
    make_config(events=write('log.csv', EVENTS), items=write(name, content))
  )
  assert [len(title) for title in log.titles] == sizes


def test_long_cells_of_a_log(make_config, write, tmp_path):
  rows = [row.strip() + f',{LONG}\n' for row in ROWS]
  path = write('log.csv', ''.join(rows))
  with pytest.raises(InputError, match='first line.*config.data.header=False'):
    event_log.read(make_config(events=path, **BY_POSITION))
  config = make_config(events=path, header=False, **BY_POSITION)
  assert len(event_log.read(config).users) == 12

  columns = [
    column.to_pylist()
    for column in pa.table(
      [pa.array([row.split(',')[k] for row in ROWS]) for k in range(2)],
      ['u', 'i'],
    ).columns
  ]
  pa.parquet.write_table(
    pa.table(
      {
        'user_id': columns[0],
        'item_id': columns[1],
        'timestamp': [START] * 12,
        'note': [LONG * 10] * 12,
      }
    ),
    tmp_path / 'log.parquet',
  )
  path = str(tmp_path / 'log.parquet')
  assert len(event_log.read(make_config(events=path)).users) == 12


# ------------------------------------------------------ files of one log


def test_a_part_without_a_header_loses_no_row(make_config, tmp_path):
  (tmp_path / 'log').mkdir()
  (tmp_path / 'log' / '1.csv').write_text(EVENTS)
  (tmp_path / 'log' / '2.csv').write_text(''.join(ROWS))
  config = make_config(events=str(tmp_path / 'log'), **BY_POSITION)
  with pytest.raises(InputError, match=r'2\.csv: the first line cannot'):
    event_log.read(config)


@pytest.mark.parametrize('time', ['', 'NA', 'none', '13/09/2020', '00:00:01'])
def test_a_first_line_of_ids_is_no_header(make_config, write, time):
  path = write('log.csv', f'u0,i0,{time}\n' + ''.join(ROWS))
  with pytest.raises(InputError, match="'u0' is a user and 'i0' an item of it"):
    event_log.read(make_config(events=path, **BY_POSITION))
  log = event_log.read(
    make_config(events=path, header=False, bad_rows='drop', **BY_POSITION)
  )
  assert len(log.users) == 12


def moved(folder, how):
  """Moves `events.csv` and `items.csv` of a folder; returns where they are."""
  events, items = folder / 'events.csv', folder / 'items.csv'
  there = folder / 'another place'
  there.mkdir()
  if how == 'link':
    (there / 'log.csv').symlink_to(events)
    return there / 'log.csv', items
  if how == 'relative':
    return os.path.relpath(events), os.path.relpath(items)
  if how == 'copied':
    return shutil.copy(events, there / 'log 2.csv'), items
  if how == 'touched':
    os.utime(events, (1, 1))
    return events, items
  if how == 'items renamed':
    return events, items.rename(folder / 'products.2021.csv')
  if how == 'both moved':
    return events.rename(there / 'a.csv'), items.rename(there / 'b.csv')
  if how == 'alone in a folder':
    return events.rename(there / 'events.csv').parent, items
  return events.rename(folder / how), items


@pytest.mark.parametrize(
  'how',
  [
    *('link', 'relative', 'copied', 'touched', 'items renamed', 'both moved'),
    *('alone in a folder', 'events.2020-09-01.csv', 'EVENTS.CSV', 'v2.txt'),
    'Ereignisse (neu) é.csv',
  ],
)
def test_a_log_that_moves_is_the_same_log(make_config, write, tmp_path, how):
  write('events.csv', EVENTS)
  write(
    'items.csv', 'item_id,title\n' + ''.join(f'i{k},T{k}\n' for k in range(4))
  )
  places = tmp_path / 'events.csv', tmp_path / 'items.csv'
  before = silent(make_config(events=str(places[0]), items=str(places[1])))
  places = moved(tmp_path, how)
  after = silent(make_config(events=str(places[0]), items=str(places[1])))
  assert after.fingerprint == before.fingerprint


def test_parts_that_are_renamed_in_order_are_the_same_log(
  make_config, tmp_path
):
  (tmp_path / 'log').mkdir()
  for k in range(3):
    part = HEADER + ''.join(ROWS[4 * k : 4 * k + 4])
    (tmp_path / 'log' / f'part-{k}.csv').write_text(part)
  config = make_config(events=str(tmp_path / 'log'))
  before = silent(config)
  for k in range(3):
    os.rename(
      tmp_path / 'log' / f'part-{k}.csv', tmp_path / 'log' / f'2020-0{k}.csv'
    )
  assert silent(config).fingerprint == before.fingerprint
