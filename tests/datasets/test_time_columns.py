"""Times of every type and unit become unix seconds."""

import datetime

import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files

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
    ['2010-12-01 03:26:00.5 -0500'],
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
  path = event_files.write_parquet(
    tmp_path / 'log.parquet', user_id=['u'], item_id=['i'], timestamp=values
  )
  event_files.check(
    event_log.read(make_config(events=path)), ['u'], ['i'], [1291191960]
  )
  if isinstance(values, list):
    text = tmp_path / 'log.csv'
    text.write_text(f'user_id,item_id,timestamp\nu,i,{values[0]}\n')
    event_files.check(
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
  path = event_files.write_parquet(
    tmp_path / 'log.parquet', user_id=['u'], item_id=['i'], timestamp=values
  )
  event_files.check(
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
  path = event_files.write_parquet(
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
  with pytest.raises(InputError, match='0 to 5000.*data.time_unit=s'):
    event_log.read(make_config(events=path))
  log = event_log.read(make_config(events=path, time_unit='s'))
  event_files.check(log, ['u', 'u'], ['i', 'j'], [0, 5000])


def test_unit_and_dates_are_reported(make_config, write):
  log = event_log.read(make_config(events=write('log.csv', event_files.CSV)))
  assert 'time unit s, 2010-12-01 to 2011-11-22' in log.source
  assert 'log.csv' in log.source


def test_a_declared_unit_is_checked(make_config, write):
  path = write('log.csv', 'user_id,item_id,timestamp\nu,i,1291191960\n')
  for unit in ('iso', 'ms'):
    config = make_config(events=path, time_unit=unit, bad_rows='drop')
    if unit == 'ms':  # The middle of January 1970.
      assert event_log.read(config).times.tolist() == [1291191]
    else:
      with pytest.raises(InputError, match='no good row'):
        event_log.read(config)
  path = write(
    'ms.csv', f'user_id,item_id,timestamp\n{event_files.GOOD}u,i,1291191960000'
  )
  with pytest.raises(InputError, match='row 3.*unit of the column'):
    event_log.read(make_config(events=path, time_unit='s'))


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
