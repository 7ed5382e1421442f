"""Cleaning the published invoice lines, in every form they come in."""

import datetime

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets.sources import online_retail
from dynllm_jax.types import InputError

NAMES = (
  'InvoiceNo',
  'StockCode',
  'Description',
  'Quantity',
  'InvoiceDate',
  'UnitPrice',
  'CustomerID',
  'Country',
)
DAY = datetime.datetime(2010, 12, 1, 8, 26)
LATER = datetime.datetime(2010, 12, 13, 17, 5)
ROWS = [
  ('536365', '85123A', 'HEART', 6, DAY, 2.55, 17850.0, 'United Kingdom'),
  ('536365', '71053', 'LANTERN', 6, DAY, 3.39, 17850.0, 'United Kingdom'),
  ('536365', '85123A', 'HEART HOLDER', 1, DAY, 2.55, 17850.0, 'France'),
  ('536366', '71053', 'LAMP', 1, LATER, 3.39, 13047.0, 'France'),
  ('536366', '71053', 'LAMP', 1, LATER, 3.39, 13047.0, 'France'),
  ('536367', '85123A', 'HEART HOLDER', 1, LATER, 2.55, 17850.0, 'France'),
  ('536368', '71053', 'LANTERN', 3, LATER, 3.39, None, 'France'),
  ('C536369', '71053', 'LANTERN', -3, LATER, 3.39, 13047.0, 'France'),
  ('C536370', '71053', 'LANTERN', 3, LATER, 3.39, 13047.0, 'France'),
  ('536371', 'POST', 'POSTAGE', 3, LATER, 18.0, 13047.0, 'France'),
  ('536372', '71053', None, 2, LATER, 3.39, 13047.0, 'France'),
]
COUNTS = {
  'rows read': 11,
  'lines without a customer dropped': 1,
  'lines without a positive quantity dropped': 1,
  'cancelled lines dropped': 1,
  'lines whose stock code is no product dropped': 1,
  'repeated lines of an invoice, customer and item dropped': 2,
  'events read': 5,
}


def _text(names=NAMES, moment='%Y-%m-%d %H:%M:%S', rows=ROWS):
  lines = [','.join(names)]
  for row in rows:
    cells = [
      ''
      if cell is None
      else cell.strftime(moment)
      if isinstance(cell, datetime.datetime)
      else str(cell)
      for cell in row
    ]
    lines.append(','.join(cells))
  return '\n'.join(lines) + '\n'


def _parquet(path):
  columns = dict(zip(NAMES, zip(*ROWS)))
  pa.parquet.write_table(
    pa.table({k: list(v) for k, v in columns.items()}), path
  )


def _workbook(path):
  book = openpyxl.Workbook()
  sheets = [book.active, book.create_sheet('Year 2010-2011')]
  names = [
    n.replace('InvoiceNo', 'Invoice').replace('CustomerID', 'Customer ID')
    for n in NAMES
  ]
  for sheet, part in zip(sheets, (ROWS[:4], ROWS[4:])):
    sheet.append(names)
    for row in part:
      # As in the published file: numbers wherever a cell looks like one.
      sheet.append(
        [int(c) if isinstance(c, str) and c.isdigit() else c for c in row]
      )
  book.save(path)


@pytest.mark.parametrize(
  'name',
  [
    'raw.parquet',
    'raw.xlsx',
    'raw.csv',
    'american.csv',
    'latin.csv',
    'second.csv',
  ],
)
def test_every_form_gives_the_same_log(make_config, tmp_path, name):
  path = tmp_path / name
  if name == 'raw.parquet':
    _parquet(path)
  elif name == 'raw.xlsx':
    _workbook(path)
  elif name == 'american.csv':  # 12/1/2010 8:26
    path.write_text(_text(moment='%-m/%-d/%Y %-H:%M'))
  elif name == 'latin.csv':
    path.write_bytes(
      _text().replace('POSTAGE', 'POSTAGE \u00a3').encode('latin1')
    )
  elif name == 'second.csv':
    path.write_text(_text(('Invoice', *NAMES[1:6], 'Customer ID', 'Country')))
  else:
    path.write_text(_text())
  log = online_retail.read(make_config(events=str(path)))
  day, later = 1291191960, 1292259900
  assert log.users.tolist() == ['17850', '17850', '13047', '17850', '13047']
  assert log.items.tolist() == ['85123A', '71053', '71053', '85123A', '71053']
  assert log.times.tolist() == [day, day, later, later, later]
  titles = dict(zip(log.item_ids, log.titles))
  assert titles == {'85123A': 'HEART HOLDER', '71053': 'LAMP'}
  assert {k: log.counts[k] for k in COUNTS} == COUNTS
  assert list(log.counts)[:5] == list(COUNTS)[:5]
  assert not log.simulated


def test_of_equally_frequent_descriptions_the_first_stands(make_config, write):
  rows = [('1', '12345', d, 1, DAY, 1.0, 1.0, 'X') for d in ('', 'B', 'A')]
  log = online_retail.read(
    make_config(events=write('raw.csv', _text(rows=rows)))
  )
  assert log.titles.tolist() == ['B']


def test_where(make_config, write):
  log = online_retail.read(
    make_config(
      events=write('raw.csv', _text()), where={'Country': 'United Kingdom'}
    )
  )
  assert log.items.tolist() == ['85123A', '71053']


def test_cleaned_logs_are_read_as_they_are(make_config, write):
  log = online_retail.read(
    make_config(
      events=write('log.csv', 'user_id,item_id,timestamp\n1,POST,1291191960\n'),
      items=write('items.csv', 'item_id,title\nPOST,Postage\n'),
    )
  )
  assert log.items.tolist() == ['POST']
  assert log.titles.tolist() == ['Postage']


@pytest.mark.parametrize(
  'old,new,message',
  [
    ('StockCode', 'Stock', "no column 'StockCode'; there are: 'InvoiceNo'"),
    (
      '2010-12-01 08:26:00',
      'today',
      r"row 1 \(line 2\), column 'InvoiceDate': value 'today'",
    ),
    ('17850.0', '', None),
  ],
)
def test_bad_input(make_config, write, old, new, message):
  path = write('raw.csv', _text(rows=ROWS[:3]).replace(old, new))
  with pytest.raises(InputError, match=message or 'no line is left'):
    online_retail.read(make_config(events=path))
