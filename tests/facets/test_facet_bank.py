"""The facet bank: built once, kept, checked, causal."""

import json
import pathlib
import shutil
import threading

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import ml_collections
import numpy as np
import pytest

from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.facets.lookup import lookup
from dynllm_jax.text import encoding

DAY = 24 * 3600
WINDOW = 10 * DAY
TITLES = ['rose mascara', 'cake tins', 'shea lotion']
BRANDS = ['Acme', '', 'Bolt']
EVENTS = [
  (1, 1, 5),
  (3, 2, 9),
  (1, 3, WINDOW - 1),
  (1, 2, WINDOW),
  (3, 3, 3 * WINDOW),
  (3, 1, 3 * WINDOW + 7),
]
ARRAYS = ('texts', 'offsets', 'closes', 'index')


def config(**changes):
  """`config.facets` with rules and hashing, and with these fields changed."""
  result = ml_collections.ConfigDict(
    {
      'window_days': 10.0,
      'writer': {'name': 'rules'},
      'encoder': {'name': 'hashing', 'model': '', 'dim': 32},
    }
  )
  result.update_from_flattened_dict(changes)
  return result


@pytest.fixture(name='log')
def fixture_log(make_log):
  return make_log(EVENTS, TITLES, brands=BRANDS)


def equal(a, b):
  for name in ARRAYS:
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert getattr(a, name).dtype == getattr(b, name).dtype


def silent(line):
  raise AssertionError(f'nothing should be reported: {line}')


def test_contents(log, tmp_path):
  got, about = facet_bank.build(config(), log, str(tmp_path))
  assert got.offsets.tolist() == [0, 0, 2, 2, 4]
  assert got.closes.tolist() == [WINDOW, 2 * WINDOW, WINDOW, 4 * WINDOW]
  assert [getattr(got, name).dtype for name in ARRAYS] == [
    np.float16,
    np.int32,
    np.int32,
    np.int32,
  ]
  written = writing.write(config().writer, log, windows.profiles(log, WINDOW))
  np.testing.assert_array_equal(got.index, written.index)
  np.testing.assert_array_equal(
    got.texts[1:], encoding.encode(config().encoder, written.texts[1:])
  )
  assert not got.texts[0].any()
  seconds, folder = about.pop('seconds'), about.pop('folder')
  assert seconds >= 0 and pathlib.Path(folder).is_dir()
  assert about == {
    'writer': 'rule-written (no language model)',
    'encoder': 'hashing character n-grams, 32 dims (no language model)',
    'window_days': 10.0,
    'num_windows': 3,
    'num_profiles': 4,
    'num_unique_texts': len(written.texts) - 1,
    'num_failed': 0,
    'failure_rate': 0.0,
    'llm_dim': 32,
    # User 1's second window holds cake tins alone, and so does user 3's
    # first; they have no brand.
    'unknown': {'crd': 0.0, 'int': 0.0, 'ctg': 0.0, 'brd': 2 / 4},
  }


def test_provenance_shows_that_no_text_saw_a_later_purchase(log, tmp_path):
  got, about = facet_bank.build(config(), log, str(tmp_path))
  texts, profiles = (
    list(
      map(
        json.loads,
        pathlib.Path(about['folder'], name).read_text('utf-8').splitlines(),
      )
    )
    for name in ('texts.jsonl', 'profiles.jsonl')
  )
  assert [line['row'] for line in texts] == list(range(len(got.texts)))
  assert texts[0]['text'] == 'unknown'
  assert [line['texts'] for line in profiles] == got.index.tolist()
  for line in profiles:
    assert line['close'] - WINDOW <= line['first_time'] <= line['last_time']
    assert line['last_time'] < line['close']
  assert profiles[0] == {
    'user': 'u1',
    'close': WINDOW,
    'num_purchases': 2,
    'num_read': 2,
    'first_time': 5,
    'last_time': WINDOW - 1,
    'texts': got.index[0].tolist(),
  }


def test_second_run_reads_the_cache(log, tmp_path):
  first, about = facet_bank.build(config(), log, str(tmp_path))
  second, about_again = facet_bank.build(config(), log, str(tmp_path), silent)
  equal(first, second)
  assert about == about_again
  assert isinstance(second.texts, np.memmap)
  fresh, _ = facet_bank.build(config(), log, str(tmp_path / 'elsewhere'))
  equal(second, fresh)


@pytest.mark.parametrize('changes', [{'window_days': 5.0}, {'encoder.dim': 16}])
def test_another_config_is_another_folder(log, tmp_path, changes):
  _, first = facet_bank.build(config(), log, str(tmp_path))
  _, other = facet_bank.build(config(**changes), log, str(tmp_path))
  assert first['folder'] != other['folder']


@pytest.mark.parametrize(
  'changes', [{'encoder.model': 'x'}, {'encoder.num_retries': 9}]
)
def test_a_field_that_changes_nothing_is_the_same_folder(
  log, tmp_path, changes
):
  _, first = facet_bank.build(config(), log, str(tmp_path))
  _, other = facet_bank.build(config(**changes), log, str(tmp_path), silent)
  assert first['folder'] == other['folder']


def test_another_log_is_another_folder(log, make_log, tmp_path):
  _, first = facet_bank.build(config(), log, str(tmp_path))
  _, other = facet_bank.build(
    config(), make_log(EVENTS[:-1], TITLES, brands=BRANDS), str(tmp_path)
  )
  assert first['folder'] != other['folder']


def cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def flip(path):
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  'name', ['texts.npy', 'index.npy', 'texts.jsonl', 'about.json', 'sums.json']
)
@pytest.mark.parametrize('damage', [cut, flip, pathlib.Path.unlink])
def test_damage_is_reported_and_built_again(log, tmp_path, name, damage):
  first, about = facet_bank.build(config(), log, str(tmp_path))
  expected = {field: np.array(getattr(first, field)) for field in ARRAYS}
  del first
  damage(pathlib.Path(about['folder'], name))
  lines = []
  again, _ = facet_bank.build(config(), log, str(tmp_path), lines.append)
  assert about['folder'] in lines[0] and 'building it again' in lines[0]
  for field in ARRAYS:
    np.testing.assert_array_equal(getattr(again, field), expected[field])
  facet_bank.build(config(), log, str(tmp_path), silent)
  assert len(list((tmp_path / 'facets').iterdir())) == 1


def test_a_failed_build_leaves_nothing(log, tmp_path, monkeypatch):
  def fail(*_):
    raise RuntimeError('no connection')

  monkeypatch.setattr(encoding, 'encode', fail)
  with pytest.raises(RuntimeError, match='no connection'):
    facet_bank.build(config(), log, str(tmp_path))
  assert not list((tmp_path / 'facets').iterdir())


def test_another_process_may_be_first(log, tmp_path, monkeypatch):
  """Both end with the same bank, and one folder is left."""
  barrier, results = threading.Barrier(2), []
  encode = encoding.encode

  def wait(*args):
    barrier.wait()
    return encode(*args)

  monkeypatch.setattr(encoding, 'encode', wait)

  def work():
    results.append(facet_bank.build(config(), log, str(tmp_path))[0])

  threads = [threading.Thread(target=work) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  equal(*results)
  assert len(list((tmp_path / 'facets').iterdir())) == 1
  monkeypatch.undo()
  equal(results[0], facet_bank.build(config(), log, str(tmp_path), silent)[0])


def test_arrays_outlive_their_folder(log, tmp_path):
  got, about = facet_bank.build(config(), log, str(tmp_path))
  expected = np.array(got.texts)
  shutil.rmtree(about['folder'])
  np.testing.assert_array_equal(got.texts, expected)


def test_log_without_events(make_log, tmp_path):
  for _ in range(2):
    got, about = facet_bank.build(
      config(), make_log([], TITLES, num_users=2), str(tmp_path)
    )
    assert got.texts.shape == (1, 32) and got.index.shape == (0, 4)
    assert got.offsets.tolist() == [0] * 4
    assert about['num_profiles'] == 0
    assert not lookup(got, np.array([1], np.int32), np.array([9], np.int32))[
      0
    ].any()


@given(
  st.lists(
    st.tuples(
      st.integers(1, 3), st.integers(1, 3), st.integers(0, 4 * WINDOW - 1)
    ),
    max_size=8,
  ),
  st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_causal(make_log, tmp_path_factory, late, k):
  """What serves a user up to a close does not change with what follows."""
  close = k * WINDOW
  early = [event for event in EVENTS if event[2] < close]
  late = [event for event in late if event[2] >= close]
  folder = str(tmp_path_factory.mktemp('causal'))
  served = []
  for events in (EVENTS, early + late):
    got, _ = facet_bank.build(
      config(), make_log(events, TITLES, brands=BRANDS, num_users=3), folder
    )
    rows = lookup(
      got,
      np.repeat(np.arange(4, dtype=np.int32), k),
      np.tile(np.arange(1, k + 1, dtype=np.int32) * WINDOW, 4),
    )
    served.append(got.texts[np.asarray(rows)].tobytes())
  assert served[0] == served[1]


def test_a_plan_says_what_is_left(log, tmp_path):
  def plan():
    lines = []
    facet_bank.plan(config(), log, str(tmp_path), lines.append)
    assert lines[0] == (
      'facets: rule-written (no language model); hashing character n-grams, '
      '32 dims (no language model)'
    )
    return lines[1:]

  assert plan() == [
    'facets: 3 windows, 4 profiles; no language model is asked',
    f'facets: at most {4 * 4} facet texts and 3 item texts to embed',
  ]
  assert not any(tmp_path.iterdir())
  _, about = facet_bank.build(config(), log, str(tmp_path), lambda line: None)
  written = f'facets: nothing to write, all are in {about["folder"]}'
  assert plan() == [
    written,
    'facets: at most 0 facet texts and 3 item texts to embed',
  ]
  facet_bank.item_text(config().encoder, log, str(tmp_path))
  assert plan() == [
    written,
    'facets: at most 0 facet texts and 0 item texts to embed',
  ]


def test_item_text(log, tmp_path):
  got = facet_bank.item_text(config().encoder, log, str(tmp_path))
  assert got.shape == (4, 32) and got.dtype == np.float16
  np.testing.assert_array_equal(
    got,
    encoding.encode(
      config().encoder,
      ['', 'rose mascara | Acme', 'cake tins', 'shea lotion | Bolt'],
    ),
  )
  again = facet_bank.item_text(config().encoder, log, str(tmp_path), silent)
  np.testing.assert_array_equal(again, got)
