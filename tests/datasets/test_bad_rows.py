"""Bad rows stop the run, by file, row, column and value, or are dropped."""

import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files


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
  path = write(
    'log.csv', f'user_id,item_id,timestamp\n{event_files.GOOD}{row}\n'
  )
  with pytest.raises(InputError) as caught:
    event_log.read(make_config(events=path))
  caught.match(message)
  caught.match(r'row 3 \(line 4\)')
  caught.match('allowed: ')
  caught.match(path)
  assert '\n' not in str(caught.value)
  log = event_log.read(make_config(events=path, bad_rows='drop'))
  event_files.check(log, ['u1', 'u2'], ['i1', 'i2'], [1291191960, 1291191961])
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
