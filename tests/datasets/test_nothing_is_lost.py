"""What readers elsewhere lose in silence is read here, or named.

A row, a text, a column or a time that is not what the file says is worse than
an error. Each case is a small file with its right value.
"""

import datetime
import decimal
import json
import os

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from dynllm_jax.datasets import loading
from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files

START = 1_600_000_000
BY_POSITION = {'user_column': 0, 'item_column': 1, 'time_column': 2}
HEADER = event_files.HEADER


def rows_of(count=12, between=','):
  """Lines `u0,i0,1600000000`, without a header."""
  return [
    between.join([f'u{k % 3}', f'i{k % 4}', str(START + k)])
    for k in range(count)
  ]


def load(config):
  """The prepared log, and what was said of it."""
  lines = []
  return loading.load(config, lines.append), lines


@pytest.fixture
def workbook(tmp_path):
  def make(rows, name='log.xlsx'):
    book = openpyxl.Workbook()
    for row in rows:
      book.active.append(row)
    book.save(tmp_path / name)
    return str(tmp_path / name)

  return make


# -------------------------------------------------------------- no header


@pytest.mark.parametrize(
  'first',
  [
    'u0,i0,1600000000',
    '1,2,1600000000.5',
    '1,2,1.6e9',
    '2,1,2020-09-13',
    '2,1,2020-09-13T12:26:40.25Z',
    '2,1,0',
    '2,1, 5 ',
    '0,1,20200913',
  ],
)
def test_a_first_line_with_a_time_is_no_header(make_config, write, first):
  path = write('log.csv', '\n'.join([first, *rows_of()]))
  with pytest.raises(InputError, match=r'first line.*config\.data\.header=Fal'):
    event_log.read(make_config(events=path, **BY_POSITION))
  with pytest.raises(InputError, match='no column.*config.data.header=False'):
    event_log.read(make_config(events=path))


def test_the_numbers_of_pandas_and_blanks_are_names(make_config, write):
  for header in ('0,1,2', 'user_id, item_id , timestamp'):
    path = write('log.csv', '\n'.join([header, *rows_of()]))
    log = event_log.read(make_config(events=path, **BY_POSITION))
    assert len(log.users) == 12
  assert len(event_log.read(make_config(events=path)).users) == 12


def test_no_workbook_without_a_header_loses_its_first_row(
  make_config, workbook
):
  moment = datetime.datetime(2020, 9, 13, 12, 26, 40)
  path = workbook([('u', 'i', moment), ('u', 'j', moment)])
  with pytest.raises(InputError, match='first line.*config.data.header=False'):
    event_log.read(make_config(events=path, **BY_POSITION))
  log = event_log.read(make_config(events=path, header=False, **BY_POSITION))
  event_files.check(log, ['u', 'u'], ['i', 'j'], [START, START])


def test_the_first_item_of_a_table_is_no_header(make_config, write):
  events = write('log.csv', HEADER + event_files.GOOD)
  items = write('items.csv', 'i1,First\ni2,Second\n')
  fields = {'events': events, 'items': items, 'title_column': 1}
  with pytest.raises(InputError, match="'i1' is an item.*items_header=False"):
    event_log.read(make_config(items_item_column=0, **fields))
  with pytest.raises(InputError, match='config.data.items_header=False'):
    event_log.read(make_config(**fields))
  log = event_log.read(
    make_config(items_item_column=0, items_header=False, **fields)
  )
  assert log.titles.tolist() == ['First', 'Second']


# ---------------------------------------------------- columns of one name


@pytest.mark.parametrize('names', ['name,name,time', ',,time', '1,0,time'])
@pytest.mark.parametrize('kind', ['csv', 'parquet', 'feather', 'xlsx'])
def test_columns_of_one_name_are_read_by_position(
  make_config, write, workbook, tmp_path, names, kind
):
  rows = [row.split(',') for row in rows_of()]
  path = str(tmp_path / f'log.{kind}')
  if kind == 'csv':
    path = write('log.csv', '\n'.join([names, *rows_of()]))
  elif kind == 'xlsx':
    header = [name or None for name in names.split(',')]
    path = workbook([header, *rows])
  else:
    table = pa.table([list(column) for column in zip(*rows)], names.split(','))
    writer = pa.parquet.write_table if kind == 'parquet' else None
    (writer or pa.feather.write_feather)(table, path)
  log = event_log.read(
    make_config(events=path, **BY_POSITION | {'time_column': 'time'})
  )
  assert len(set(log.users)) == 3 and len(set(log.items)) == 4
  if names.startswith('name'):
    with pytest.raises(InputError, match='more than one.*positions 0, 1'):
      event_log.read(
        make_config(events=path, user_column='name', time_column='time')
      )


def test_two_roles_are_two_columns(make_config, write):
  path = write('log.csv', HEADER + event_files.GOOD)
  with pytest.raises(InputError, match='config.data.item_column.*another col'):
    event_log.read(make_config(events=path, item_column='user_id'))


def test_columns_with_a_dot_in_their_name(make_config, tmp_path):
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    **{
      'user': pa.array([{'id': 'no'}, {'id': 'no'}]),
      'user.id': ['u', 'v'],
      'item': ['i', 'j'],
      'at': [START, START],
    },
  )
  log = event_log.read(
    make_config(
      events=path, user_column='user.id', item_column='item', time_column='at'
    )
  )
  event_files.check(log, ['u', 'v'], ['i', 'j'], [START, START])


# ---------------------------------------------------------------- quotes


@pytest.mark.parametrize('bad_rows', ['error', 'drop'])
@pytest.mark.parametrize('between', [',', ';', '|', '\t'])
@pytest.mark.parametrize(
  'line, what',
  [
    ({4: '"open'}, 'line 5: a quote.*never closed'),
    ({11: '"open'}, 'line 12: a quote.*never closed'),
    ({12: '"open'}, 'line 13: a quote.*never closed'),
    ({3: '"open', 9: '"open'}, 'line 4: a quote.*'),
    ({3: '"open', 9: '12"'}, 'line 4: a quote.*spans lines'),
    ({3: '"open', 4: '3.5"'}, 'line 4: a quote.*spans lines'),
  ],
)
def test_an_open_quote_is_named(
  make_config, write, between, bad_rows, line, what
):
  rows = [row.replace(',', between) for row in [HEADER.strip(), *rows_of()]]
  rows = [f'{row}{between}{line.get(at, "x")}' for at, row in enumerate(rows)]
  for end in ('', '\n', '\n\n'):
    path = write('log.txt', '\n'.join(rows) + end)
    config = make_config(events=path, bad_rows=bad_rows, delimiter=between)
    with pytest.raises(InputError, match=what + '.*data.quoting'):
      event_log.read(config)
  plain = make_config(events=path, delimiter=between, quoting='none')
  assert len(event_log.read(plain).users) == 12


def test_quotes_that_are_closed_are_read(make_config, write):
  items = (
    'item_id,title,category\n'
    'i0,"Two\nlines, and a comma",a\ni1,"He said ""x""\n\nand left",b\n'
    'i2,3.5" disk,c\ni3,"7"" disk",d\n'
  )
  log = event_log.read(
    make_config(
      events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
      items=write('items.csv', items),
    )
  )
  assert log.titles.tolist() == [
    'Two\nlines, and a comma',
    'He said "x"\n\nand left',
    '3.5" disk',
    '7" disk',
  ]


# ------------------------------------------------------------- long cells


@pytest.mark.parametrize('size', [140_000, 20_000_000])
@pytest.mark.parametrize('name', ['items.csv', 'items.tsv', 'items.jsonl'])
def test_a_cell_may_be_long(make_config, write, name, size):
  if name.endswith('jsonl'):
    table = [
      {'item_id': 'i0', 'title': 't' * size},
      {'item_id': 'i1', 'title': 'x'},
    ]
  else:
    between = ',' if name.endswith('csv') else '\t'
    rows = [['item_id', 'title'], ['i0', 't' * size], ['i1', 'x'], ['']]
    table = '\n'.join(map(between.join, rows)) + '\n'
  log = event_log.read(
    make_config(
      events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
      items=write(name, table),
    )
  )
  assert [len(title) for title in log.titles] == [size, 1]


# ------------------------------------------------------------------- JSON


@pytest.mark.parametrize('bad_rows', ['error', 'drop'])
@pytest.mark.parametrize(
  'text, read',
  [
    (r'"Part \ud83d"', 'Part \ufffd'),
    (r'"\ude00 end"', '\ufffd end'),
    (r'"\ud83d\ude00"', '\U0001f600'),
    (r'["a \ud83d", "b"]', 'a \ufffd > b'),
  ],
)
def test_half_a_character_is_replaced(make_config, write, text, read, bad_rows):
  rows = [f'{{"item_id": "i{k}", "title": "Part {k}"}}' for k in range(4)]
  rows[1] = f'{{"item_id": "i1", "title": {text}}}'
  log = event_log.read(
    make_config(
      events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
      items=write('items.jsonl', '\n'.join(rows)),
      bad_rows=bad_rows,
    )
  )
  assert log.titles.tolist() == ['Part 0', read, 'Part 2', 'Part 3']


def test_half_a_character_in_a_key(make_config, write):
  rows = [f'{{"item_id": "i{k}", "\\ud83d": 1, "name": "n"}}' for k in range(4)]
  log = event_log.read(
    make_config(
      events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
      items=write('items.jsonl', '\n'.join(rows)),
    )
  )
  assert log.titles.tolist() == ['n'] * 4


def test_an_array_of_objects_is_read_as_lines_are(make_config, write):
  rows = [
    {'user_id': 'u', 'item_id': f'i{k}', 'timestamp': START + k}
    for k in range(3)
  ]
  path = write('log.json', json.dumps(rows, indent=2))
  log = event_log.read(make_config(events=path))
  assert log.items.tolist() == ['i0', 'i1', 'i2']
  path = write('log.json', json.dumps([*rows, 5]))
  with pytest.raises(InputError, match='element 4 of the array, 5, is not'):
    event_log.read(make_config(events=path))


def test_a_key_may_come_late(make_config, write):
  events = [
    {'user_id': f'u{k % 7}', 'item_id': f'i{k}', 'timestamp': START + k}
    for k in range(1300)
  ]
  items = [{'item_id': f'i{k}', 'title': f'T{k}'} for k in range(1300)]
  for k in range(1100, 1300):
    events[k]['gift'] = 'yes'
    items[k]['brand'] = ['A', 'B'] if k == 1299 else 'A'
  config = make_config(
    events=write('log.jsonl', events), items=write('items.jsonl', items)
  )
  log = event_log.read(config)
  assert (log.brands != '').sum() == 200 and log.brands[1299] == 'A > B'
  config.where = {'gift': 'yes'}
  assert len(event_log.read(config).users) == 200


# ---------------------------------------------------------- Parquet types


@pytest.mark.parametrize(
  'change',
  [
    lambda a: a.cast(pa.string_view()),
    lambda a: a.cast(pa.large_string()),
    lambda a: a.cast(pa.binary()),
    lambda a: a.dictionary_encode(),
    lambda a: a.cast(pa.large_string()).dictionary_encode(),
    lambda a: a.cast(pa.binary()).dictionary_encode(),
  ],
)
@pytest.mark.parametrize('kind', ['parquet', 'feather'])
def test_strings_of_every_type(make_config, tmp_path, change, kind):
  rows = [row.split(',') for row in rows_of()]
  columns = dict(zip(HEADER.strip().split(','), map(list, zip(*rows))))
  columns['kind'] = ['buy', 'view'] * 6
  table = pa.table({n: change(pa.array(c)) for n, c in columns.items()})
  path = str(tmp_path / f'log.{kind}')
  if kind == 'parquet':
    pa.parquet.write_table(table, path, row_group_size=5)
  else:
    pa.feather.write_feather(table, path, chunksize=5)
  log = event_log.read(make_config(events=path, where={'kind': 'buy'}))
  event_files.check(
    log,
    [row[0] for row in rows[::2]],
    [row[1] for row in rows[::2]],
    [START + k for k in range(0, 12, 2)],
  )


def test_a_parquet_file_of_polars_and_of_pandas(make_config, tmp_path):
  data = {
    'user_id': ['u', 'v', None],
    'item_id': [1, 2, None],
    'timestamp': [START] * 3,
    'kind': ['buy', 'buy', 'view'],
  }
  frame = pl.DataFrame(data).with_columns(pl.col('kind').cast(pl.Categorical))
  frame.write_parquet(tmp_path / 'polars.parquet')
  pd.DataFrame(data).astype({'kind': 'category'}).to_parquet(
    tmp_path / 'pandas.parquet'
  )
  for name in ('polars', 'pandas'):
    path = str(tmp_path / f'{name}.parquet')
    log = event_log.read(make_config(events=path, where={'kind': 'buy'}))
    event_files.check(log, ['u', 'v'], ['1', '2'], [START] * 2)


# ------------------------------------------------------------ ids that join


@pytest.mark.parametrize(
  'log_ids, table_ids',
  [
    (['0.0', '1.0', '2.0'], ['0', '1', '2']),
    (['0', '1', '2'], ['0.0', '1.0', '2.0']),
    (['0.', '1.', '2.'], ['0', '1', '2']),
    (['10.00', '11.00'], ['10', '11']),
    ([' a', 'b ', 'c'], ['a', 'b', ' c\u00a0']),
    (['007', '008'], ['007', '008']),
  ],
)
def test_ids_that_were_changed_on_their_way_join(
  make_config, write, log_ids, table_ids
):
  events = ''.join(f'u,{i},{START + k}\n' for k, i in enumerate(log_ids * 3))
  items = ''.join(f'{i},Title {k}\n' for k, i in enumerate(table_ids))
  log, _ = load(
    make_config(
      events=write('log.csv', HEADER + events),
      items=write('items.csv', 'item_id,title\n' + items),
    )
  )
  assert sorted(log.titles) == [
    '',
    *(f'Title {k}' for k in range(len(table_ids))),
  ]


@pytest.mark.parametrize(
  'log_ids, words',
  [
    (['00', '01', '02'], 'without leading zeros'),
    (
      ['item-0', 'item-1'],
      "'item-0'.*the table '0', '1', '2'.*by their digits",
    ),
    (['x', 'y', '1'], 'only 1 are'),
  ],
)
def test_a_table_without_the_items_stops_the_run(
  make_config, write, log_ids, words
):
  events = ''.join(f'u,{i},{START + k}\n' for k, i in enumerate(log_ids * 3))
  config = make_config(
    events=write('log.csv', HEADER + events),
    items=write('items.csv', 'item_id,title\n0,a\n1,b\n2,c\n'),
  )
  with pytest.raises(InputError, match=words):
    load(config)
  config.items_missing = 'warn'
  log, lines = load(config)
  assert any('warning' in line and 'no text' in line for line in lines)
  # What goes on with a warning is not found again where it is an error.
  config.items_missing = 'error'
  with pytest.raises(InputError, match=words):
    load(config)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'title_column': 'titel'}, "no column 'titel'.*'title'"),
    ({'brand_column': 'brand'}, "no column 'brand'"),
    ({'category_column': 7}, "no column '7'"),
    ({'items_item_column': 'sku'}, "no column 'sku'"),
    ({'items_item_column': 'title', 'title_column': 'item_id'}, 'only 0 are'),
  ],
)
def test_a_configured_column_must_be_there(make_config, write, fields, words):
  config = make_config(
    events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
    items=write('items.csv', 'item_id,title\ni0,a\ni1,b\ni2,c\ni3,d\n'),
    **fields,
  )
  with pytest.raises(InputError, match=words):
    load(config)


def test_a_table_without_a_text_is_an_error(make_config, write):
  config = make_config(
    events=write('log.csv', '\n'.join([HEADER.strip(), *rows_of()])),
    items=write('items.csv', 'item_id,label\ni0,a\ni1,b\ni2,c\ni3,d\n'),
  )
  with pytest.raises(InputError, match="'label'.*config.data.title_column"):
    load(config)
  config.title_column = 'label'
  assert load(config)[0].titles.tolist() == ['', *'abcd']


@pytest.mark.parametrize(
  'column',
  [
    ['1.23457E+17', 'b'],
    ['1.23457e+17', '5'],
    pa.array([2.0**53 + 2, 1.0]),
    pa.array(np.array([2**24 + 2, 1], np.float32)),
  ],
)
def test_ids_that_lost_digits_are_named(make_config, tmp_path, column):
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=['u', 'v'],
    item_id=column,
    timestamp=[START, START],
  )
  with pytest.raises(InputError, match='row 1.*lost its last digits'):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  assert log.users.tolist() == ['v']


def test_ids_of_decimals_and_floats_are_whole(make_config, tmp_path):
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=pa.array([decimal.Decimal('12.00'), decimal.Decimal('7.00')]),
    item_id=pa.array([12, 7], pa.float32()),
    timestamp=[START, START],
  )
  log = event_log.read(make_config(events=path))
  event_files.check(log, ['12', '7'], ['12', '7'], [START, START])


# ------------------------------------------------------------------- times


@pytest.mark.parametrize('kind', ['ms', 'us', 'ns', 'float', 'iso', 'stamp'])
@pytest.mark.parametrize('name', ['log.csv', 'log.parquet', 'log.jsonl'])
def test_events_of_one_second_are_in_order_and_none_is_lost(
  make_config, write, tmp_path, kind, name
):
  tenths = np.random.default_rng(0).permutation(200)
  micros = START * 10**6 + tenths * 100_000
  stamps = micros.astype('M8[us]')
  times = {
    'ms': micros // 1000,
    'us': micros,
    'ns': micros * 1000,
    'float': START + tenths / 10,
    'iso': [str(stamp) for stamp in stamps],
    'stamp': stamps,
  }[kind]
  frame = pd.DataFrame({'user_id': 'u', 'item_id': 'i', 'timestamp': times})
  frame['item_id'] = np.where(tenths % 2, 'odd', 'even')
  if name.endswith('parquet'):
    frame.to_parquet(tmp_path / name)
  elif name.endswith('csv'):
    frame.to_csv(tmp_path / name, index=False)
  else:
    frame['timestamp'] = (
      [str(stamp) for stamp in stamps]
      if kind == 'stamp'
      else frame['timestamp']
    )
    frame.to_json(tmp_path / name, orient='records', lines=True)
  log, _ = load(make_config(events=str(tmp_path / name)))
  assert log.num_events == 200
  assert log.item_ids[log.items].tolist() == ['even', 'odd'] * 100
  assert log.times.tolist() == [k // 10 for k in range(200)]


@pytest.mark.parametrize('name', ['log.csv', 'log.parquet', 'log.jsonl'])
@pytest.mark.parametrize('scale', [1, 1000])
def test_times_that_went_through_32_bits_are_named(
  make_config, tmp_path, name, scale
):
  times = (START + 100 * np.arange(50)) * scale
  narrow = times.astype(np.float32)
  frame = pd.DataFrame({'user_id': 'u', 'item_id': 'i', 'timestamp': narrow})
  path = str(tmp_path / name)
  if name.endswith('parquet'):
    frame.to_parquet(path)
  elif name.endswith('csv'):
    frame.to_csv(path, index=False)
  else:
    frame['timestamp'] = narrow.astype(float)
    frame.to_json(path, orient='records', lines=True)
  with pytest.raises(InputError, match='32-bit floats.*config.data.time_unit'):
    event_log.read(make_config(events=path))
  unit = {1: 's', 1000: 'ms'}[scale]
  assert event_log.read(make_config(events=path, time_unit=unit)).users.size


def test_times_that_are_whole_for_a_reason_are_read(make_config, tmp_path):
  for step in (86_400, 3600, 28_800, 60):
    path = event_files.write_parquet(
      tmp_path / 'log.parquet',
      user_id=['u'] * 50,
      item_id=['i'] * 50,
      timestamp=[START // 86_400 * 86_400 + step * k for k in range(50)],
    )
    assert event_log.read(make_config(events=path)).users.size == 50


@pytest.mark.parametrize(
  'text, moment',
  [
    ('2020090112', (2020, 9, 1, 12)),
    ('202009011230', (2020, 9, 1, 12, 30)),
    ('20200901123059', (2020, 9, 1, 12, 30, 59)),
  ],
)
def test_dates_with_hours_without_signs(make_config, write, text, moment):
  rows = ''.join(f'u,i{k},{text}\n' for k in range(3))
  log = event_log.read(make_config(events=write('log.csv', HEADER + rows)))
  wanted = datetime.datetime(*moment, tzinfo=datetime.UTC).timestamp()
  assert log.times.tolist() == [wanted] * 3
  assert '2020-09-01' in log.source


@pytest.mark.parametrize('scale, unit', [(1, 's'), (1000, 'ms')])
@pytest.mark.parametrize('form', ['{:.0f}', '{:.1f}'])
def test_times_that_start_at_0(make_config, write, scale, unit, form):
  seconds = np.arange(100) * 30_000
  rows = [f'u,i,{form.format(second * scale)}\n' for second in seconds]
  config = make_config(events=write('log.csv', HEADER + ''.join(rows)))
  with pytest.raises(InputError, match='starts at 0.*data.time_unit=s'):
    event_log.read(config)
  config.time_unit = unit
  assert event_log.read(config).times.tolist() == seconds.tolist()


# -------------------------------------------------------------- file names


@pytest.mark.parametrize(
  'name', ['log.2020-09.csv', 'log.v2.CSV', 'other/log [1].csv', 'log.txt']
)
def test_a_log_that_is_renamed_is_the_same_log(
  make_config, write, tmp_path, name
):
  content = '\n'.join([HEADER.strip(), *rows_of()])
  (tmp_path / 'other').mkdir()
  config = make_config(events=write('log.csv', content))
  before, _ = load(config)
  os.rename(config.events, tmp_path / name)
  config.events = str(tmp_path / name)
  after, lines = load(config)
  assert after.fingerprint == before.fingerprint
  assert any('loaded from' in line for line in lines)


@pytest.mark.parametrize('name', ['[lr=0.1]', 'a*b?', 'é%20#x', "q'u;o,te {}"])
def test_folders_have_any_name(make_config, write, tmp_path, name):
  (tmp_path / name).mkdir()
  path = write(f'{name}/log.csv', '\n'.join([HEADER.strip(), *rows_of()]))
  config = make_config(events=path, dir=str(tmp_path / name / 'store'))
  before, _ = load(config)
  after, lines = load(config)
  assert any('loaded from' in line for line in lines)
  assert after.users.tolist() == before.users.tolist()
