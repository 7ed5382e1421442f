"""What --mode=check says of a log."""

import pytest

from dynllm_jax.datasets import loading
from dynllm_jax.types import InputError


def test_the_first_rows_are_shown_as_they_are_read(make_config, write):
  rows = [f'u{k},i{k},{1_600_000_000 + k},5' for k in range(3000)]
  rows[2000] = 'a row that is none'
  events = write('log.csv', '\n'.join(['user_id,item_id,at,stars', *rows]))
  items = write('items.csv', 'item_id,name,price\ni1,Soap,3\ni9,Tea,4\n')
  config = make_config(events=events, items=items, time_column='at')
  lines = []
  loading.preview(config, lines.append)
  text = '\n'.join(lines)
  for words in (
    "user is the column 'user_id', as 'u0', 'u1', 'u2'",
    "not read: 'stars'",
    "not read: 'price'",
    "title is the column 'name'",
    'time unit s, 2020-09-13',
    '2 of 1,000 items of these rows are in the item table, which has 2',
    'warning: config.data.items',
    "user 'u1' takes item 'i1' ('Soap') at 2020-09-13 12:26:41 UTC",
  ):
    assert words in text, text
  config.time_column = 'when'
  with pytest.raises(InputError, match="no column 'when'.*'at'"):
    loading.preview(config, lines.append)


def test_every_format_is_looked_at(make_config, tmp_path):
  pd = pytest.importorskip('pandas')
  frame = pd.DataFrame(
    {'user_id': ['u', 'v'], 'item_id': [1, 2], 'timestamp': [1.6e9, 1.6e9 + 1]}
  )
  frame.to_parquet(tmp_path / 'log.parquet')
  frame.to_feather(tmp_path / 'log.feather')
  frame.to_excel(tmp_path / 'log.xlsx', index=False)
  frame.to_json(tmp_path / 'log.jsonl', orient='records', lines=True)
  for name in ('parquet', 'feather', 'xlsx', 'jsonl'):
    lines = []
    loading.preview(
      make_config(events=str(tmp_path / f'log.{name}')), lines.append
    )
    assert any("item '1' at 2020-09-13 12:26:40" in line for line in lines)


def test_a_simulated_log_is_named(make_config):
  lines = []
  loading.preview(make_config(source='simulated'), lines.append)
  assert lines == ["check: the log is made by the source 'simulated'"]
