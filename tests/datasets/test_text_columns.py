"""Ids of every type become text."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from dynllm_jax.datasets.sources import event_log
from dynllm_jax.types import InputError
from tests.testing import event_files


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
  path = event_files.write_parquet(
    tmp_path / 'log.parquet',
    user_id=column,
    item_id=['i', 'j'],
    timestamp=event_files.TIMES[:2],
  )
  event_files.check(
    event_log.read(make_config(events=path)),
    expected,
    ['i', 'j'],
    event_files.TIMES[:2],
  )


def test_json_ids_beside_a_float_keep_their_digits(make_config, write):
  users = [9007199254740993, 9007199254740994, 1.5]
  path = write(
    'log.jsonl',
    [
      {'user_id': user, 'item_id': 'i', 'timestamp': event_files.TIMES[0]}
      for user in users
    ],
  )
  log = event_log.read(make_config(events=path))
  assert log.users.tolist() == list(map(str, users))


def test_ids_that_are_no_text(make_config, tmp_path):
  path = str(tmp_path / 'log.parquet')
  pa.parquet.write_table(
    pa.table(
      {
        'user_id': pa.array([b'\xff'], pa.binary()),
        'item_id': ['i'],
        'timestamp': event_files.TIMES[:1],
      }
    ),
    path,
  )
  with pytest.raises(InputError, match="row 1, column 'user_id'.*half a char"):
    event_log.read(make_config(events=path))
