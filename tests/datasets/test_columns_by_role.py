"""Columns by name or position, and the rows that a filter keeps."""

import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files


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
  event_files.check(log, ['u'], ['i'], [1291191960])


@pytest.mark.parametrize('positions', [(0, 1, 2), ('0', '1', '2')])
def test_columns_by_number_with_a_header(make_config, write, positions):
  config = make_config(events=write('log.csv', 'a,b,c\nu,i,1291191960\n'))
  config.user_column, config.item_column, config.time_column = positions
  event_files.check(event_log.read(config), ['u'], ['i'], [1291191960])


def test_digits_are_positions_and_never_names(make_config, write):
  columns = {'user_column': '2', 'item_column': '1', 'time_column': '0'}
  path = write('log.csv', 'at,2,0\n1291191960,i,u\n')
  log = event_log.read(make_config(events=path, **columns))
  event_files.check(log, ['u'], ['i'], [1291191960])
  with pytest.raises(InputError, match="no column '3'.*positions 0 to 2"):
    event_log.read(make_config(events=path, **columns | {'user_column': '3'}))


def test_positions_and_delimiters_are_checked(make_config, write):
  path = write('log.csv', event_files.GOOD)
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
  for delimiter in ('"', 'é'):
    with pytest.raises(InputError, match='config.data.delimiter'):
      event_log.read(make_config(events=path, delimiter=delimiter))


@pytest.mark.parametrize(
  'where,kept',
  [
    ({'kind': 'buy'}, ['i', 'k']),
    ({'kind': ('buy', '3')}, ['i', 'k', 'l']),
    ({'kind': 'buy', 'shop': 'y'}, ['k']),
    ({'kind': 3}, ['l']),
    ({'kind': '>=3'}, ['l']),
    ({'kind': '!=view'}, ['i', 'k', 'l']),
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
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=['u', 'u', 'u'],
    item_id=['i', 'j', 'k'],
    timestamp=event_files.TIMES[:3],
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
  with pytest.raises(InputError, match=r"'kind'.*'view'.*\['buy'\]"):
    event_log.read(make_config(events=path, where={'kind': 'view'}))
  with pytest.raises(InputError, match="no column 'sort'.*'kind'"):
    event_log.read(make_config(events=path, where={'sort': 'view'}))
