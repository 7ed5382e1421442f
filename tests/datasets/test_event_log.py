"""The event log reader: formats, ids, times, filters, bad input."""

import datetime
import gzip

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError

USERS = ['007', '8', '007', 'Zoë']
ITEMS = ['a,b', 'c', 'c', 'd "e"']
TIMES = [1291191960, 1291191960, 1291200000, 1322000000]
CSV = (
  'user_id,item_id,timestamp\n007,"a,b",1291191960\n8,c,1291191960\n'
  '007,c,1291200000\nZoë,"d ""e""",1322000000\n'
)


def _rows(times=TIMES):
  return [
    {'user_id': u, 'item_id': i, 'timestamp': t}
    for u, i, t in zip(USERS, ITEMS, times)
  ]


def _check(log, users=USERS, items=ITEMS, times=TIMES):
  assert log.users.tolist() == users
  assert log.items.tolist() == items
  assert log.times.tolist() == times
  assert log.times.dtype == np.int64


def _parquet(path, **columns):
  pa.parquet.write_table(pa.table(columns), path)
  return str(path)


@pytest.mark.parametrize(
  'name,content',
  [
    ('log.csv', CSV),
    ('log.csv.gz', CSV),
    ('log.txt', CSV),
    ('bom.csv', '\ufeff' + CSV),
    ('crlf.csv', CSV.replace('\n', '\r\n')),
    ('blank.csv', CSV.replace('\n8', '\n\n8')),
    (
      'log.tsv',
      'extra\tuser_id\titem_id\ttimestamp\n'
      'x\t007\ta,b\t1291191960\nx\t8\tc\t1291191960\n'
      'x\t007\tc\t1291200000\nx\tZoë\t"d ""e"""\t1322000000\n',
    ),
    ('log.jsonl', _rows()),
    ('log.json', _rows()),
    ('log.json.gz', _rows()),
    (
      'mixed.jsonl',
      [
        {**row, 'more': [1, {'a': n}] if n else 'x'}
        for n, row in enumerate(_rows())
      ],
    ),
    ('text.jsonl', _rows(list(map(str, TIMES)))),
    ('float.jsonl', _rows([float(t) for t in TIMES])),
  ],
)
def test_formats_agree(make_config, write, name, content):
  log = event_log.read(make_config(events=write(name, content)))
  _check(log)
  assert log.counts['rows read'] == log.counts['events read'] == 4


def test_parquet_and_workbook_agree(make_config, tmp_path):
  path = _parquet(
    tmp_path / 'log.parquet', user_id=USERS, item_id=ITEMS, timestamp=TIMES
  )
  _check(event_log.read(make_config(events=path)))
  book = openpyxl.Workbook()
  for row in [('user_id', 'item_id', 'timestamp'), *zip(USERS, ITEMS, TIMES)]:
    book.active.append(row)
  book.save(tmp_path / 'log.xlsx')
  _check(event_log.read(make_config(events=str(tmp_path / 'log.xlsx'))))


def test_columns_by_position_without_a_header(make_config, write):
  path = write('log.txt', '1291191960|x|u|i\n1291191961|y|v|j\n')
  log = event_log.read(
    make_config(
      events=path,
      header=False,
      delimiter='|',
      user_column='2',
      item_column='3',
      time_column='0',
      where={'1': 'x'},
    )
  )
  _check(log, ['u'], ['i'], [1291191960])


@pytest.mark.parametrize('positions', [(0, 1, 2), ('0', '1', '2')])
def test_columns_by_number_with_a_header(make_config, write, positions):
  config = make_config(events=write('log.csv', 'a,b,c\nu,i,1291191960\n'))
  config.user_column, config.item_column, config.time_column = positions
  _check(event_log.read(config), ['u'], ['i'], [1291191960])


def test_digits_may_be_a_column_name(make_config, write):
  path = write('log.csv', '2,1,0\nu,i,1291191960\n')
  _check(
    event_log.read(
      make_config(
        events=path, user_column='2', item_column='1', time_column='0'
      )
    ),
    ['u'],
    ['i'],
    [1291191960],
  )


@pytest.mark.parametrize(
  'name,between',
  [
    ('log.csv', ';'),
    ('log.csv', '\t'),
    ('log.txt', '\t'),
    ('log.dat', ','),
    ('log.data', '\t'),
    ('log.txt.gz', '|'),
  ],
)
def test_the_delimiter_is_seen_in_the_first_line(
  make_config, write, name, between
):
  rows = ['user_id,item_id,timestamp', 'u,"i;1,\t|",1291191960']
  head, row = (between.join(line.split(',', 2)) for line in rows)
  row = between.join(['u', '"i;1,\t|"', '1291191960'])
  _check(
    event_log.read(make_config(events=write(name, f'{head}\n{row}\n'))),
    ['u'],
    ['i;1,\t|'],
    [1291191960],
  )


def test_quotes_that_swallow_rows_of_a_tsv_are_refused(make_config, write):
  rows = [
    'u\ta\t1291191960\t"Heroes',
    'v\tb\t1291191961\tx',
    '',
    'w\tc\t1291191962\t"Mix',
    'x\tc\t1291191963\ty',
  ]
  fields = {
    'header': False,
    'user_column': '0',
    'item_column': '1',
    'time_column': '2',
    'events': write('log.tsv', '\n'.join(rows)),
  }
  with pytest.raises(InputError, match="line 1: a quote.*data.quoting='none'"):
    event_log.read(make_config(**fields))
  log = event_log.read(make_config(quoting='none', **fields))
  assert log.users.tolist() == ['u', 'v', 'w', 'x']
  log = event_log.read(make_config(quoting='double', **fields))
  assert log.users.tolist() == ['u', 'x']
  fields['events'] = write('open.tsv', rows[0] + '\n' + rows[1])
  with pytest.raises(InputError, match="line 1: a quote.*data.quoting='none'"):
    event_log.read(make_config(**fields))
  with pytest.raises(
    InputError, match='config.data.quoting.*auto, double, none'
  ):
    event_log.read(make_config(**{**fields, 'quoting': 'single'}))


@pytest.mark.parametrize(
  'column,expected',
  [
    (pa.array([17850.0, 3.0]), ['17850', '3']),
    (pa.array([17850, 3], pa.int32()), ['17850', '3']),
    (pa.array([1.5, 3.0]), ['1.5', '3']),
    (pa.array(['01', '1']), ['01', '1']),
    (pa.array(['01', '1']).dictionary_encode(), ['01', '1']),
    (pa.array([b'01', b'1']), ['01', '1']),
  ],
)
def test_parquet_ids(make_config, tmp_path, column, expected):
  path = _parquet(
    tmp_path / 'log.parquet',
    user_id=column,
    item_id=['i', 'j'],
    timestamp=TIMES[:2],
  )
  _check(
    event_log.read(make_config(events=path)), expected, ['i', 'j'], TIMES[:2]
  )


MOMENT = datetime.datetime(2010, 12, 1, 8, 26, 0, 999_999)


@pytest.mark.parametrize(
  'values',
  [
    ['1291191960'],
    ['1291191960.9'],
    ['1.29119196e9'],
    [' 1291191960 '],
    ['1291191960000'],
    ['1291191960999'],
    ['1291191960000000'],
    ['1291191960000000999'],
    ['1.29119196e+18'],
    ['2010-12-01 08:26:00'],
    ['2010-12-01T08:26:00Z'],
    ['2010-12-01T08:26:00.999999'],
    ['2010-12-01 09:26:00.5+01:00'],
    ['2010-12-01T03:26:00-0500'],
    ['2010-12-01 08:26'],
    ['2010-12-01 08:26:00 UTC'],
    pa.array([1291191960.5]),
    pa.array([1291191960999]),
    pa.array([MOMENT]),
    pa.array([MOMENT], pa.timestamp('ns')),
    pa.array([MOMENT], pa.timestamp('us', 'Asia/Shanghai')),
    pa.array([MOMENT.replace(microsecond=0)], pa.timestamp('s')),
  ],
)
def test_every_way_to_write_a_time(make_config, tmp_path, values):
  path = _parquet(
    tmp_path / 'log.parquet', user_id=['u'], item_id=['i'], timestamp=values
  )
  _check(event_log.read(make_config(events=path)), ['u'], ['i'], [1291191960])
  if isinstance(values, list):
    text = tmp_path / 'log.csv'
    text.write_text(f'user_id,item_id,timestamp\nu,i,{values[0]}\n')
    _check(
      event_log.read(make_config(events=str(text))), ['u'], ['i'], [1291191960]
    )


@pytest.mark.parametrize(
  'values',
  [
    ['2010-12-01'],
    pa.array([MOMENT.date()]),
    pa.array([MOMENT.date()], pa.date64()),
  ],
)
def test_dates(make_config, tmp_path, values):
  path = _parquet(
    tmp_path / 'log.parquet', user_id=['u'], item_id=['i'], timestamp=values
  )
  _check(
    event_log.read(make_config(events=path)),
    ['u'],
    ['i'],
    [1291191960 // 86_400 * 86_400],
  )


@pytest.mark.parametrize('unit', ['auto', 'iso'])
@pytest.mark.parametrize(
  'values',
  [
    ['20101201', '20120229', '20110229'],
    pa.array([20101201, 20120229, 20110229], pa.int32()),
  ],
)
def test_dates_without_hyphens(make_config, tmp_path, values, unit):
  path = _parquet(
    tmp_path / 'log.parquet',
    user_id=['u'] * 3,
    item_id=['i'] * 3,
    timestamp=values,
  )
  day = lambda *date: int(
    datetime.datetime(*date, tzinfo=datetime.UTC).timestamp()
  )
  log = event_log.read(
    make_config(events=path, time_unit=unit, bad_rows='drop')
  )
  assert log.times.tolist() == [day(2010, 12, 1), day(2012, 2, 29)]
  with pytest.raises(InputError, match='row 3.*20110229'):
    event_log.read(make_config(events=path, time_unit=unit))


def test_relative_seconds_need_a_declared_unit(make_config, write):
  path = write('log.csv', 'user_id,item_id,timestamp\nu,i,0\nu,j,5000\n')
  with pytest.raises(InputError, match="0 to 5000.*data.time_unit='s'"):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, time_unit='s'))
  _check(log, ['u', 'u'], ['i', 'j'], [0, 5000])


def test_unit_and_dates_are_reported(make_config, write):
  log = event_log.read(make_config(events=write('log.csv', CSV)))
  assert 'time unit s, 2010-12-01 to 2011-11-22' in log.source
  assert 'log.csv' in log.source


@pytest.mark.parametrize(
  'where,kept',
  [
    ({'kind': 'buy'}, ['i', 'k']),
    ({'kind': ('buy', '3')}, ['i', 'k', 'l']),
    ({'kind': 'buy', 'shop': 'y'}, ['k']),
    ({'kind': 3}, ['l']),
  ],
)
def test_where(make_config, write, where, kept):
  path = write(
    'log.csv',
    'user_id,item_id,timestamp,kind,shop\n'
    'u,i,1291191960,buy,x\n,j,nonsense,view,x\n'
    'u,k,1291191961,buy,y\nu,l,1291191962,3,y\n',
  )
  log = event_log.read(make_config(events=path, where=where))
  assert log.items.tolist() == kept
  assert log.counts['rows left out by data.where'] == 4 - len(kept)


def test_where_on_numbers_and_booleans(make_config, tmp_path):
  path = _parquet(
    tmp_path / 'log.parquet',
    user_id=['u', 'u', 'u'],
    item_id=['i', 'j', 'k'],
    timestamp=TIMES[:3],
    kind=[1, 2, 1],
    paid=[True, True, False],
  )
  log = event_log.read(
    make_config(events=path, where={'kind': 1, 'paid': True})
  )
  assert log.items.tolist() == ['i']


def test_where_that_leaves_nothing(make_config, write):
  path = write(
    'log.csv', 'user_id,item_id,timestamp,kind\nu,i,1291191960,buy\n'
  )
  with pytest.raises(InputError, match=r"'kind'.*\['view'\].*\['buy'\]"):
    event_log.read(make_config(events=path, where={'kind': 'view'}))
  with pytest.raises(InputError, match="no column 'sort'.*'kind'"):
    event_log.read(make_config(events=path, where={'sort': 'view'}))


GOOD = 'u1,i1,1291191960\nu2,i2,1291191961\n'


@pytest.mark.parametrize(
  'row,message',
  [
    (',i,1291191962', "column 'user_id': value '' is missing"),
    ('nan,i,1291191962', "column 'user_id': value 'nan' is missing"),
    ('u,NA,1291191962', "column 'item_id': value 'NA' is missing"),
    (r'\N,i,1291191962', r"column 'user_id': value '\\\\N' is missing"),
    ('u, ,1291191962', "column 'item_id': value ' ' is missing"),
    ('u,i,', "column 'timestamp': value '' is missing"),
    ('u,i,NaN', "column 'timestamp': value 'NaN' is missing"),
    ('u,i,soon', "column 'timestamp': value 'soon' is not a time"),
    ('u,i,1e400', "column 'timestamp': value '1e400' is not a time"),
    ('u,i,2010-12-01', "value '2010-12-01' is not a time"),
    ('u,i,-5', "value '-5' is negative"),
    (
      'u,i,1291191962000',
      r"value '1291191962000' is not in the unit of the "
      r'column \(s\)',
    ),
    ('u,i,7', "value '7' is not in the unit"),
  ],
)
def test_bad_rows_stop_or_are_dropped(make_config, write, row, message):
  path = write('log.csv', f'user_id,item_id,timestamp\n{GOOD}{row}\n')
  with pytest.raises(InputError) as caught:
    event_log.read(make_config(events=path))
  caught.match(message)
  caught.match(r'row 3 \(line 4\)')
  caught.match('allowed: ')
  caught.match(path)
  assert '\n' not in str(caught.value)
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  _check(log, ['u1', 'u2'], ['i1', 'i2'], [1291191960, 1291191961])
  dropped = {k: v for k, v in log.counts.items() if k.startswith('dropped')}
  assert list(dropped.values()) == [1]


def test_iso_columns_have_bad_rows_too(make_config, write):
  for bad in ('2010-02-30', '2010-13-01', '1291191960', '1969-12-31', 'x'):
    path = write(
      'log.csv',
      'user_id,item_id,timestamp\nu,i,2010-12-01\n'
      f'u,j,2010-12-02\nu,k,{bad}\nu,l,2010-02-29\n',
    )
    log = event_log.read(make_config(events=path, bad_rows='drop'))
    assert log.items.tolist() == ['i', 'j']
    with pytest.raises(InputError, match=f"row 3.*value '{bad}'"):
      event_log.read(make_config(events=path))


def test_a_declared_unit_is_checked(make_config, write):
  path = write('log.csv', 'user_id,item_id,timestamp\nu,i,1291191960\n')
  for unit in ('iso', 'ms'):
    config = make_config(events=path, time_unit=unit, bad_rows='drop')
    if unit == 'ms':  # The middle of January 1970.
      assert event_log.read(config).times.tolist() == [1291191]
    else:
      with pytest.raises(InputError, match='no good row'):
        event_log.read(config)
  path = write('ms.csv', f'user_id,item_id,timestamp\n{GOOD}u,i,1291191960000')
  with pytest.raises(InputError, match='row 3.*unit of the column'):
    event_log.read(make_config(events=path, time_unit='s'))


def test_line_numbers_count_lines(make_config, write):
  path = write(
    'log.csv', 'user_id,item_id,timestamp\n"u\nu",i,1291191960\n\nu,j,x\n'
  )
  with pytest.raises(InputError, match=r'row 2 \(line 5\)'):
    event_log.read(make_config(events=path))


@pytest.mark.parametrize(
  'rows,place',
  [
    (
      [
        {'user_id': 'u', 'item_id': 'i', 'timestamp': 1291191960},
        {'user_id': 'u', 'item_id': 'j', 'timestamp': 'x'},
      ],
      r'row 2 \(line 2\)',
    ),
    (
      [
        {'user_id': 'u', 'item_id': 'i', 'timestamp': 1291191960},
        {'user_id': None, 'item_id': 'j', 'timestamp': 1291191960},
      ],
      'row 2',
    ),
    (
      [
        {'user_id': 'u', 'item_id': 'i', 'timestamp': 1291191960},
        {'user_id': 'u', 'timestamp': 1291191960},
      ],
      'row 2',
    ),
  ],
)
def test_bad_json_cells(make_config, write, rows, place):
  path = write('log.jsonl', rows)
  with pytest.raises(InputError, match=place):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  assert log.items.tolist() == ['i']


def test_json_ids_beside_a_float_keep_their_digits(make_config, write):
  users = [9007199254740993, 9007199254740994, 1.5]
  path = write(
    'log.jsonl',
    [
      {'user_id': user, 'item_id': 'i', 'timestamp': TIMES[0]} for user in users
    ],
  )
  log = event_log.read(make_config(events=path))
  assert log.users.tolist() == list(map(str, users))


@pytest.mark.parametrize(
  'column,message',
  [
    (pa.array([2**39], pa.timestamp('s')), 'is not before 2100'),
    (pa.array([-(10**12)], pa.timestamp('s')), 'before 1970'),
  ],
)
def test_times_beyond_the_calendar(make_config, tmp_path, column, message):
  path = str(tmp_path / 'log.parquet')
  pa.parquet.write_table(
    pa.table({'user_id': ['u'], 'item_id': ['i'], 'timestamp': column}), path
  )
  with pytest.raises(InputError, match=message):
    event_log.read(make_config(events=path))


def test_ids_that_are_no_text(make_config, tmp_path):
  path = str(tmp_path / 'log.parquet')
  pa.parquet.write_table(
    pa.table(
      {
        'user_id': pa.array([b'\xff'], pa.binary()),
        'item_id': ['i'],
        'timestamp': TIMES[:1],
      }
    ),
    path,
  )
  with pytest.raises(InputError, match='log.parquet: cannot be read'):
    event_log.read(make_config(events=path))


def test_malformed_lines(make_config, write):
  text = f'user_id,item_id,timestamp\n{GOOD}u,i\n'
  path = write('log.csv', text)
  with pytest.raises(InputError, match='Row #4: Expected 3 columns, got 2'):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  assert log.counts['malformed lines dropped'] == 1
  assert log.counts['rows read'] == 3
  path = write(
    'log.jsonl',
    '{"user_id": "u", "item_id": "i", "timestamp": 1291191960}\n{"user_id": \n',
  )
  with pytest.raises(InputError, match='line 2.*not a JSON object'):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  assert log.counts['malformed lines dropped'] == 1
  assert log.items.tolist() == ['i']


@pytest.mark.parametrize(
  'name,content,message',
  [
    ('empty.csv', '', 'is an empty file'),
    ('header.csv', 'user_id,item_id,timestamp\n', 'has no rows'),
    (
      'names.csv',
      'user,item_id,timestamp\nu,i,1\n',
      "has no column 'user_id'; there are: 'user', 'item_id', 'timestamp'",
    ),
    (
      'twice.csv',
      'user_id,user_id,item_id,timestamp\nu,v,i,1\n',
      "more than one column 'user_id'",
    ),
    (
      'binary.csv',
      b'user_id,item_id,timestamp\n\xff\xfe,i,1291191960\n',
      r"line 2: value b'\\xff\\xfe,i.*UTF-8",
    ),
    ('bad.parquet', b'PAR1 and then nothing of the kind', 'cannot be read'),
    ('bad.xlsx', b'no workbook', 'cannot be read'),
    ('bad.jsonl', '[1, 2]\n', 'line 1.*not a JSON object'),
    ('deep.jsonl', '[' * 100_000 + '\n', 'line 1.*not a JSON object'),
    ('long.jsonl', '{"user_id": ' + '9' * 5000 + '}\n', 'line 1.*not a JSON'),
    ('keys.jsonl', '{[1]: 2}\n', 'line 1.*not a JSON object'),
    ('log.xml', '<log/>', "unknown format '.xml'; allowed: .csv"),
  ],
)
def test_files_that_cannot_be_read(make_config, write, name, content, message):
  path = write(name, content)
  with pytest.raises(InputError) as caught:
    event_log.read(make_config(events=path))
  caught.match(message)
  assert path in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['log.csv.gz', 'log.jsonl.gz'])
def test_broken_gzip(make_config, tmp_path, name):
  text = (
    '{"user_id": "u", "item_id": "i", "timestamp": 1291191960}\n'
    if 'json' in name
    else CSV
  )
  cut = gzip.compress(text.encode() * 2000)[:-100]
  for content in (cut, b'no gzip at all'):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match='cannot be read'):
      event_log.read(make_config(events=str(tmp_path / name)))


def test_no_file(make_config, tmp_path):
  with pytest.raises(InputError, match='config.data.events: is empty'):
    event_log.read(make_config())
  with pytest.raises(InputError, match='does not exist'):
    event_log.read(make_config(events=str(tmp_path / 'none.csv')))
  with pytest.raises(InputError, match='is a directory'):
    event_log.read(make_config(events=str(tmp_path)))


def test_positions_and_delimiters_are_checked(make_config, write):
  path = write('log.csv', GOOD)
  with pytest.raises(InputError, match="no column '9'.*positions 0 to 2"):
    event_log.read(
      make_config(
        events=path,
        header=False,
        user_column='9',
        item_column='1',
        time_column='2',
      )
    )
  with pytest.raises(InputError, match='config.data.delimiter'):
    event_log.read(make_config(events=path, delimiter='::'))


def test_item_table(make_config, write):
  items = write(
    'items.csv', 'item_id,title,brand\ni1,First,B\ni1,Second,C\nother,Other,\n'
  )
  log = event_log.read(
    make_config(
      events=write('log.csv', f'user_id,item_id,timestamp\n{GOOD}'), items=items
    )
  )
  assert log.item_ids.tolist() == ['i1', 'other']
  assert log.titles.tolist() == ['First', 'Other']
  assert log.categories.tolist() == ['', '']
  assert log.brands.tolist() == ['B', '']
  assert log.counts['item table: repeated ids dropped'] == 1
  assert log.counts['items of the log that the item table lacks'] == 1
  assert log.counts['item table: items without a brand'] == 1
  assert 'no column for category' in log.source


def test_item_table_must_have_ids(make_config, write):
  events = write('log.csv', f'user_id,item_id,timestamp\n{GOOD}')
  items = write('items.csv', 'id,title\ni1,x\n')
  with pytest.raises(
    InputError, match="config.data.items.*no column 'item_id'"
  ):
    event_log.read(make_config(events=events, items=items))
  items = write('items.csv', 'item_id,title\ni1,x\n,y\n')
  with pytest.raises(InputError, match=r'config.data.items.*row 2 \(line 3\)'):
    event_log.read(make_config(events=events, items=items))
  log = event_log.read(make_config(events=events, items=items, bad_rows='drop'))
  assert log.counts['item table: dropped: item is missing'] == 1


def test_item_table_of_another_shape(make_config, write):
  events = write('log.txt', GOOD.replace(',', '\t'))
  items = write('items.csv', 'id,name\ni1,First\ni2,Second\n')
  log = event_log.read(
    make_config(
      events=events,
      items=items,
      header=False,
      user_column=0,
      item_column=1,
      time_column=2,
      items_header=True,
      items_item_column='id',
      title_column='name',
    )
  )
  assert log.items.tolist() == ['i1', 'i2']
  assert log.titles.tolist() == ['First', 'Second']
  assert log.counts['items of the log that the item table lacks'] == 0


def test_lists_and_nulls_in_item_tables(make_config, write, tmp_path):
  events = write('log.csv', f'user_id,item_id,timestamp\n{GOOD}')
  rows = [
    {'item_id': 'i1', 'title': None, 'category': ['A', 'B']},
    {'item_id': 'i2', 'title': 'T', 'category': None, 'brand': 'X'},
  ]
  _parquet(
    tmp_path / 'items.parquet',
    item_id=['i1', 'i2'],
    title=[None, 'T'],
    category=[['A', 'B'], None],
    brand=[None, 'X'],
  )
  for path in (write('items.jsonl', rows), str(tmp_path / 'items.parquet')):
    log = event_log.read(make_config(events=events, items=path))
    assert log.titles.tolist() == ['', 'T']
    assert log.categories.tolist() == ['A > B', '']
    assert log.brands.tolist() == ['', 'X']
