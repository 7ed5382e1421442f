"""Events observed live become part of the log that they follow."""

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import live_events
from dynllm_jax.datasets import loading
from dynllm_jax.datasets.live_events import LiveEvents
from dynllm_jax.types import InputError


@pytest.fixture
def config(tmp_path):
  config = config_lib.default().data
  config.events = str(tmp_path / 'events.csv')
  config.items = str(tmp_path / 'items.csv')
  config.dir = str(tmp_path / 'data')
  config.time_unit = 's'
  config.min_user_items = config.min_item_users = 0
  rows = ''.join(f'u{n % 3},i{n % 4},{1000 + n}\n' for n in range(20))
  (tmp_path / 'events.csv').write_text('user_id,item_id,timestamp\n' + rows)
  (tmp_path / 'items.csv').write_text('item_id,title\ni0,Soap\ni1,Tea\n')
  return config


def test_they_follow_the_log(config, tmp_path):
  before = loading.load(config, print)
  config.journal = str(tmp_path / 'live.parquet')
  live = LiveEvents(
    users=['u0', 'ü', 'u0'],
    items=['new', 'i1', 'nameless'],
    times=[1030, 1040, 1005],
    texts={'new': ('Mug', 'cups', ''), 'i1': ('Green tea', '', 'b')},
  )
  live_events.write(tmp_path / 'live.parquet', live)
  log = loading.load(config, print)

  assert log.fingerprint != before.fingerprint
  assert log.num_events == before.num_events + 3
  ids = lambda log: [
    (str(log.user_ids[u]), str(log.item_ids[i]), int(t) + log.start_time)
    for u, i, t in zip(log.users, log.items, log.times)
  ]
  assert sorted(ids(log)) == sorted(
    [*ids(before), *zip(live.users, live.items, live.times)]
  )
  texts = dict(zip(log.item_ids, log.titles))
  assert (texts['new'], texts['i1'], texts['i0']) == (
    'Mug',
    'Green tea',
    'Soap',
  )
  assert texts['nameless'] == ''
  assert log.categories[np.argmax(log.item_ids == 'new')] == 'cups'
  assert log.counts['events observed live'] == 3

  config.journal = ''
  assert loading.load(config, print).fingerprint == before.fingerprint


def test_a_file_that_is_no_such_table_is_named(config, tmp_path):
  config.journal = str(tmp_path / 'items.csv')
  with pytest.raises(InputError, match=r'config.data.journal: .*items.csv'):
    loading.load(config, print)
  config.journal = str(tmp_path / 'none')
  with pytest.raises(InputError, match='config.data.journal'):
    loading.load(config, print)
