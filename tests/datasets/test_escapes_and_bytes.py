"""Quotes behind backslashes, bytes that are no UTF-8, ids of other kinds.

More of the kinds of test_nothing_is_lost.py, as Spark, MySQL, DuckDB and cut
columns of databases bring them.
"""

import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files

START = 1_600_000_000
EVENTS = event_files.HEADER + ''.join(
  f'u{k % 3},i{k % 4},{START + k}\n' for k in range(12)
)


def table(first, between=','):
  """An item table of i0 to i3, the first with another text."""
  rows = [['item_id', 'title'], ['i0', first], *(['i' + k, k] for k in '123')]
  return '\n'.join(map(between.join, rows)) + '\n'


# ------------------------------------------------- quotes behind backslashes


@pytest.mark.parametrize(
  'cell, read',
  [
    (r'"a \"b\" c"', 'a "b" c'),
    (r'"\"all\""', '"all"'),
    (r'"a \"b\", c"', 'a "b", c'),
    (r'"3\" disk"', '3" disk'),
    (r'"\"open"', '"open'),
    ('"two \\"lines\\"\nof text"', 'two "lines"\nof text'),
    (r'"C:\new, \"x\""', 'C:\\new, "x"'),
    (r'"\"x\" ends in \\"', '"x" ends in \\'),
    (r'"é \"日\""', 'é "日"'),
    (r'"a ""b"" \"c\""', 'a "b" "c"'),
  ],
)
@pytest.mark.parametrize('name', ['items.csv', 'items.tsv', 'items.csv.gz'])
def test_a_quote_behind_a_backslash_cuts_no_text(
  make_config, write, cell, read, name
):
  between = '\t' if name.endswith('tsv') else ','
  config = make_config(
    events=write('log.csv', EVENTS), items=write(name, table(cell, between))
  )
  with pytest.raises(InputError, match="line 2: a quote.*'backslash'"):
    event_log.read(config)
  config.bad_rows = 'drop'
  with pytest.raises(InputError, match="line 2: a quote.*'backslash'"):
    event_log.read(config)
  config.quoting = 'backslash'
  assert event_log.read(config).titles.tolist() == [read, *'123']


@pytest.mark.parametrize(
  'cell, read',
  [
    (r'\"plain\"', r'\"plain\"'),
    (r'C:\new', r'C:\new'),
    (r'"a folder C:\"', 'a folder C:\\'),
    (r'"1\2, ""3"""', r'1\2, "3"'),
  ],
)
def test_backslashes_of_a_text_stay(make_config, write, cell, read):
  config = make_config(
    events=write('log.csv', EVENTS), items=write('items.csv', table(cell))
  )
  assert event_log.read(config).titles[0] == read


def test_a_missing_value_of_mysql_is_none_with_backslashes(make_config, write):
  rows = table('"\\"x\\""') + 'i9,\\N\n'
  config = make_config(
    events=write('log.csv', EVENTS),
    items=write('items.csv', rows),
    quoting='backslash',
  )
  assert event_log.read(config).titles.tolist() == ['"x"', *'123', '']


# ------------------------------------------------------ bytes that were cut


CUT = 'T\U0001f600'.encode()[:-2]


def cut_items(name):
  """An item table whose first title ends in the middle of a character."""
  if name.endswith('parquet'):
    ids = pa.array(['i0', 'i1', 'i2', 'i3'])
    bytes_ = pa.array([CUT, b'1', b'2', b'3'])
    titles = pa.StringArray.from_buffers(4, *bytes_.buffers()[1:])
    titles = {
      'plain.parquet': titles,
      'binary.parquet': bytes_,
      'dictionary.parquet': bytes_.dictionary_encode(),
    }[name]
    stream = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({'item_id': ids, 'title': titles}), stream)
    return stream.getvalue().to_pybytes()
  if 'json' in name:
    rows = [{'item_id': f'i{k}', 'title': t} for k, t in enumerate('T123')]
    text = json.dumps(rows) if name.endswith('json') else ''
    text = text or '\n'.join(map(json.dumps, rows))
    return text.encode().replace(b'"T"', b'"' + CUT + b'"')
  between = '::' if name.endswith('dat') else ','
  return table('T', between).encode().replace(b'T\n', CUT + b'\n')


@pytest.mark.parametrize(
  'name', ['items.csv', 'items.csv.gz', 'items.dat', 'items.jsonl', 'a.json']
)
def test_a_text_that_was_cut_is_named_or_replaced(make_config, write, name):
  config = make_config(
    events=write('log.csv', EVENTS), items=write(name, cut_items(name))
  )
  config.quoting = 'none' if name.endswith('dat') else 'auto'
  with pytest.raises(InputError, match='line [12]: value .* is not UTF-8'):
    event_log.read(config)
  config.bad_rows = 'drop'
  log = event_log.read(config)
  assert log.titles.tolist() == ['T\ufffd', *'123']
  assert log.counts['item table: texts with half a character'] == 1


@pytest.mark.parametrize(
  'name', ['plain.parquet', 'binary.parquet', 'dictionary.parquet']
)
def test_a_text_of_parquet_that_was_cut_is_replaced(make_config, write, name):
  config = make_config(
    events=write('log.csv', EVENTS), items=write(name, cut_items(name))
  )
  log = event_log.read(config)
  assert log.titles.tolist() == ['T\ufffd', *'123']
  assert log.counts['item table: texts with half a character'] == 1


@pytest.mark.parametrize('name', ['log.csv', 'log.jsonl', 'log.parquet'])
def test_ids_that_were_cut_are_bad_rows(make_config, write, name):
  users = [b'u', CUT, b'u', CUT + b'\xff']
  rows = [(user, f'i{k}', START + k) for k, user in enumerate(users)]
  if name.endswith('parquet'):
    stream = pa.BufferOutputStream()
    columns = dict(zip(('user_id', 'item_id', 'timestamp'), zip(*rows)))
    pa.parquet.write_table(pa.table(columns), stream)
    content, what = stream.getvalue().to_pybytes(), 'row 2.*half a character'
  elif name.endswith('csv'):
    lines = [b'%s,%s,%d' % (u, i.encode(), t) for u, i, t in rows]
    content = event_files.HEADER.encode() + b'\n'.join(lines)
    what = 'line 3: value .* is not UTF-8'
  else:
    form = b'{"user_id": "%s", "item_id": "%s", "timestamp": %d}'
    lines = [form % (u, i.encode(), t) for u, i, t in rows]
    content, what = b'\n'.join(lines), 'line 2: value .* is not UTF-8'
  config = make_config(events=write(name, content))
  with pytest.raises(InputError, match=what):
    event_log.read(config)
  config.bad_rows = 'drop'
  log = event_log.read(config)
  event_files.check(log, ['u', 'u'], ['i0', 'i2'], [START, START + 2])
  assert sum(n for what, n in log.counts.items() if 'half a' in what) == 2


# ------------------------------------------------------------- other ids


def test_uuids_are_ids(make_config, tmp_path):
  ids = [uuid.UUID(int=(k << 120) + 7) for k in (1, 200, 255)]
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=pa.array([name.bytes for name in ids], pa.uuid()),
    item_id=pa.array(np.arange(3), pa.uint8()),
    timestamp=[START] * 3,
  )
  log = event_log.read(make_config(events=path))
  event_files.check(log, list(map(str, ids)), ['0', '1', '2'], [START] * 3)
