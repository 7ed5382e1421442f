"""Item tables beside an event log."""

import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files


def test_item_table(make_config, write):
  items = write(
    'items.csv', 'item_id,title,brand\ni1,First,B\ni1,Second,C\nother,Other,\n'
  )
  log = event_log.read(
    make_config(
      events=write('log.csv', f'user_id,item_id,timestamp\n{event_files.GOOD}'),
      items=items,
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
  events = write('log.csv', f'user_id,item_id,timestamp\n{event_files.GOOD}')
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
  events = write('log.txt', event_files.GOOD.replace(',', '\t'))
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
  events = write('log.csv', f'user_id,item_id,timestamp\n{event_files.GOOD}')
  rows = [
    {'item_id': 'i1', 'title': None, 'category': ['A', 'B']},
    {'item_id': 'i2', 'title': 'T', 'category': None, 'brand': 'X'},
  ]
  event_files.write_parquet(
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
