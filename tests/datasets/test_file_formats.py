"""Files of every format give the same log; what cannot be read is named."""

import gzip

import openpyxl
import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files


@pytest.mark.parametrize(
  'name,content',
  [
    ('log.csv', event_files.CSV),
    ('log.csv.gz', event_files.CSV),
    ('log.txt', event_files.CSV),
    ('bom.csv', '\ufeff' + event_files.CSV),
    ('crlf.csv', event_files.CSV.replace('\n', '\r\n')),
    ('blank.csv', event_files.CSV.replace('\n8', '\n\n8')),
    (
      'log.tsv',
      'extra\tuser_id\titem_id\ttimestamp\n'
      'x\t007\ta,b\t1291191960\nx\t8\tc\t1291191960\n'
      'x\t007\tc\t1291200000\nx\tZoë\t"d ""e"""\t1322000000\n',
    ),
    ('log.jsonl', event_files.json_rows()),
    ('log.json', event_files.json_rows()),
    ('log.json.gz', event_files.json_rows()),
    (
      'mixed.jsonl',
      [
        {**row, 'more': [1, {'a': n}] if n else 'x'}
        for n, row in enumerate(event_files.json_rows())
      ],
    ),
    ('text.jsonl', event_files.json_rows(list(map(str, event_files.TIMES)))),
    (
      'float.jsonl',
      event_files.json_rows([float(t) for t in event_files.TIMES]),
    ),
  ],
)
def test_formats_agree(make_config, write, name, content):
  log = event_log.read(make_config(events=write(name, content)))
  event_files.check(log)
  assert log.counts['rows read'] == log.counts['events read'] == 4


def test_parquet_and_workbook_agree(make_config, tmp_path):
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=event_files.USERS,
    item_id=event_files.ITEMS,
    timestamp=event_files.TIMES,
  )
  event_files.check(event_log.read(make_config(events=path)))
  book = openpyxl.Workbook()
  for row in [
    ('user_id', 'item_id', 'timestamp'),
    *zip(event_files.USERS, event_files.ITEMS, event_files.TIMES),
  ]:
    book.active.append(row)
  book.save(tmp_path / 'log.xlsx')
  event_files.check(
    event_log.read(make_config(events=str(tmp_path / 'log.xlsx')))
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
  event_files.check(
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
  with pytest.raises(
    InputError, match='line 1.*text follows its end on line 4'
  ):
    event_log.read(make_config(quoting='double', **fields))
  fields['events'] = write('open.tsv', rows[0] + '\n' + rows[1])
  with pytest.raises(InputError, match='line 1: a quote.*never closed'):
    event_log.read(make_config(**fields))
  with pytest.raises(
    InputError, match='config.data.quoting.*auto, double, backslash, none'
  ):
    event_log.read(make_config(**{**fields, 'quoting': 'single'}))


def test_malformed_lines(make_config, write):
  text = f'user_id,item_id,timestamp\n{event_files.GOOD}u,i\n'
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
    else event_files.CSV
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
  with pytest.raises(InputError, match='is a directory without files'):
    event_log.read(make_config(events=str(tmp_path)))
