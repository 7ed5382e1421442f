"""An event log in files of every form, for tests of the readers."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from dynllm_jax.types import RawLog

USERS = ['007', '8', '007', 'Zoë']
ITEMS = ['a,b', 'c', 'c', 'd "e"']
TIMES = [1291191960, 1291191960, 1291200000, 1322000000]
HEADER = 'user_id,item_id,timestamp\n'
CSV = HEADER + (
  '007,"a,b",1291191960\n8,c,1291191960\n'
  '007,c,1291200000\nZoë,"d ""e""",1322000000\n'
)
# Two rows of another log, without the header.
GOOD = 'u1,i1,1291191960\nu2,i2,1291191961\n'


def json_rows(times=TIMES) -> list[dict]:
  """The log's rows as JSON objects."""
  return [
    {'user_id': u, 'item_id': i, 'timestamp': t}
    for u, i, t in zip(USERS, ITEMS, times)
  ]


def check(log: RawLog, users=USERS, items=ITEMS, times=TIMES) -> None:
  """Asserts that a log is what the files say."""
  assert log.users.tolist() == users
  assert log.items.tolist() == items
  assert log.times.tolist() == times
  assert log.times.dtype == np.int64


def write_parquet(path: pathlib.Path, **columns) -> str:
  """Writes a Parquet file; its path."""
  pa.parquet.write_table(pa.table(columns), path)
  return str(path)
