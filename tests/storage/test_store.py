"""The store: appended, killed, damaged, shared by processes."""

import json
import os
import pathlib
import random
import time

import hypothesis
from hypothesis import strategies as st
import pytest

from dynllm_jax.storage import store as store_lib
from dynllm_jax.storage.store import digest
from dynllm_jax.storage.store import Store
from dynllm_jax.types import InputError
from tests.testing import scripts

ABOUT = {'model': 'm', 'version': 1}


def payload(number):
  """Bytes of a length that follows from the number."""
  return bytes([number % 251]) * (number * 7919 % 300)


def fill(folder, numbers):
  store = Store(folder, ABOUT)
  numbers = list(numbers)
  store.append([digest(n) for n in numbers], [payload(n) for n in numbers])
  return store


def check_whole(folder):
  """Every row is what was appended under its key; returns the numbers."""
  store = Store(folder, ABOUT)
  found = {
    n: row
    for n, row in enumerate(store.find([digest(n) for n in range(20_000)]))
    if row >= 0
  }
  assert sorted(found.values()) == list(range(len(store)))
  for number, row in found.items():
    assert store.read(row) == payload(number)
  return set(found)


def test_rows_are_found_and_read_by_key(tmp_path):
  store = fill(tmp_path, range(10))
  assert len(store) == 10
  keys = [digest(3), digest('no'), digest(9), digest(3)]
  assert store.find(keys).tolist() == [3, -1, 9, 3]
  assert store.read(3) == payload(3)
  assert store.find([]).tolist() == []
  again = Store(tmp_path, {'version': 1, 'model': 'm'})
  assert again.find(keys).tolist() == [3, -1, 9, 3]
  assert again.read(9) == payload(9)


def test_a_digest_follows_its_parts():
  assert len(digest('a', 1)) == 16
  assert digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
  parts = [
    (),
    ('a',),
    ('a', ''),
    ('', 'a'),
    (['a', ''],),
    ('aa',),
    ('é',),
    ('\ud800',),
    (1,),
    ('1',),
  ]
  assert len({digest(*p) for p in parts}) == len(parts)


def test_a_key_keeps_its_first_payload(tmp_path):
  store = Store(tmp_path, ABOUT)
  store.append([digest(1), digest(2), digest(1)], [b'one', b'', b'other'])
  store.append([digest(2), digest(3)], [b'other', b'three'])
  assert [store.read(row) for row in range(len(store))] == [
    b'one',
    b'',
    b'three',
  ]


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  calls=st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=12),
  most=st.integers(0, 6),
)
def test_finding_agrees_with_a_dict(tmp_path_factory, calls, most):
  """However many keys wait between two sorts."""
  folder = tmp_path_factory.mktemp('store')
  expected = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(store_lib, 'MAX_UNSORTED', most)
    store = Store(folder, ABOUT)
    for numbers in calls:
      store.append([digest(n) for n in numbers], [b'x'] * len(numbers))
      for n in numbers:
        expected.setdefault(n, len(expected))
      assert store.find([digest(n) for n in range(41)]).tolist() == [
        expected.get(n, -1) for n in range(41)
      ]


def test_keys_that_share_their_first_half_are_told_apart(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, 'MAX_UNSORTED', 0)
  keys = [b'12345678' + bytes([n]) * 8 for n in range(5)]
  store = Store(tmp_path, ABOUT)
  store.append(keys[:4], [b'x'] * 4)
  assert store.find(keys).tolist() == [0, 1, 2, 3, -1]


def test_another_process_sees_rows_after_a_refresh(tmp_path):
  reader = Store(tmp_path, ABOUT)
  fill(tmp_path, range(3))
  assert len(reader) == 0
  reader.refresh()
  assert reader.read(2) == payload(2)
  table = fill(tmp_path, range(5))
  reader.append([digest(4), digest(5)], [b'kept out', payload(5)])
  table.refresh()
  assert [table.read(row) for row in range(6)] == list(map(payload, range(6)))


def test_another_identity_is_refused_by_name(tmp_path):
  fill(tmp_path, range(3))
  with pytest.raises(InputError, match='version is 1, not 2; allowed'):
    Store(tmp_path, {**ABOUT, 'version': 2})
  with pytest.raises(InputError, match='seed is None, not 0'):
    Store(tmp_path, {**ABOUT, 'seed': 0})
  (tmp_path / 'about.json').write_text('{"model')
  with pytest.raises(InputError, match='about.json: cannot be read'):
    Store(tmp_path, ABOUT)
  (tmp_path / 'about.json').unlink()
  with pytest.raises(InputError, match='about.json is missing'):
    Store(tmp_path, ABOUT)


def test_a_finished_store_is_read_without_permission_to_write(tmp_path):
  fill(tmp_path, range(3))
  (tmp_path / 'lock').unlink()
  os.chmod(tmp_path, 0o555)
  try:
    store = Store(tmp_path, ABOUT)
    assert [store.read(row) for row in range(3)] == [
      payload(n) for n in range(3)
    ]
    assert not (tmp_path / 'lock').exists()
  finally:
    os.chmod(tmp_path, 0o755)


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='file.*cannot be written'):
    Store(tmp_path / 'file' / 'store', ABOUT)


@pytest.mark.parametrize(
  'name, tail',
  [
    ('index.bin', b'\1' * 31),
    ('index.bin', b'\0' * 32 * 3),
    ('payload.bin', b'torn'),
  ],
)
def test_a_torn_tail_is_cut_off(tmp_path, name, tail):
  fill(tmp_path, range(1, 6))
  whole = (tmp_path / name).stat().st_size
  with open(tmp_path / name, 'ab') as file:
    file.write(tail)
  assert check_whole(tmp_path) == set(range(1, 6))
  assert (tmp_path / name).stat().st_size == whole + len(tail)
  fill(tmp_path, range(5, 9))
  assert check_whole(tmp_path) == set(range(1, 9))


def test_a_cut_index_loses_only_the_rows_cut_off(tmp_path):
  fill(tmp_path, range(1, 6))
  os.truncate(tmp_path / 'index.bin', 32 * 3 + 5)
  assert check_whole(tmp_path) == {1, 2, 3}
  fill(tmp_path, range(1, 8))
  assert check_whole(tmp_path) == set(range(1, 8))


def test_a_cut_payload_is_named(tmp_path):
  fill(tmp_path, range(1, 6))
  end = sum(len(payload(n)) for n in range(1, 4))
  os.truncate(tmp_path / 'payload.bin', end + 1)
  with pytest.raises(
    InputError, match=f'payload.bin: ends at byte {end + 1}, .* row 3'
  ):
    Store(tmp_path, ABOUT)
  os.unlink(tmp_path / 'payload.bin')
  with pytest.raises(InputError, match='payload.bin: cannot be read'):
    Store(tmp_path, ABOUT)


def test_a_store_that_shrinks_under_a_writer_is_named(tmp_path):
  store = fill(tmp_path, range(1, 6))
  os.truncate(tmp_path / 'payload.bin', 10)
  with pytest.raises(InputError, match='payload.bin: ends at byte 10'):
    store.append([digest(9)], [b''])
  os.truncate(tmp_path / 'index.bin', 0)
  with pytest.raises(InputError, match='index.bin: 0 rows, 5 before'):
    store.refresh()


@pytest.mark.parametrize(
  'field, place', [('key', 0), ('offset', 16), ('length', 24), ('checksum', 28)]
)
def test_a_damaged_entry_is_named(tmp_path, field, place):
  fill(tmp_path, range(1, 6))
  path = tmp_path / 'index.bin'
  data = bytearray(path.read_bytes())
  data[2 * 32 + place] ^= 1
  path.write_bytes(data)
  if field in ('key', 'checksum'):  # which need the payload to be told
    store = Store(tmp_path, ABOUT)
    assert store.read(1) == payload(2)
    with pytest.raises(InputError, match='payload.bin: row 2'):
      store.read(2)
  else:
    with pytest.raises(InputError, match=r'index.bin: row [23] is damaged'):
      Store(tmp_path, ABOUT)


def test_a_damaged_payload_is_named(tmp_path):
  fill(tmp_path, range(1, 6))
  path = tmp_path / 'payload.bin'
  data = bytearray(path.read_bytes())
  data[len(payload(1))] ^= 128
  path.write_bytes(data)
  store = Store(tmp_path, ABOUT)
  assert [store.read(row) for row in (0, 2, 3, 4)] == [
    payload(n) for n in (1, 3, 4, 5)
  ]
  with pytest.raises(InputError, match=r'payload.bin: row 1 \(byte'):
    store.read(1)


# ------------------------------------------------- processes of their own

# Appends the numbers from `first` in calls of up to seven, telling of each
# call before and after.
WRITER = """
import sys
from dynllm_jax.storage.store import Store, digest
folder, first, last, about = sys.argv[1:]
store = Store(folder, eval(about))
n = int(first)
while n < int(last):
  numbers = range(n, min(n + n % 7 + 1, int(last)))
  print(n, flush=True)
  store.append([digest(m) for m in numbers],
               [bytes([m % 251]) * (m * 7919 % 300) for m in numbers])
  print(numbers.stop, flush=True)
  n = numbers.stop
"""


def writer(folder, first, last):
  return scripts.running(WRITER, folder, first, last, repr(ABOUT))


def test_two_processes_append_at_once(tmp_path):
  folder = tmp_path / 'new' / 'store'
  with writer(folder, 0, 300) as one, writer(folder, 200, 500) as other:
    for process in (one, other):
      process.communicate(timeout=120)
      assert process.returncode == 0
  assert check_whole(folder) == set(range(500))
  assert len(Store(folder, ABOUT)) == 500


@pytest.mark.slow
def test_a_killed_writer_loses_what_it_was_appending_and_no_more(tmp_path):
  draw = random.Random(0)
  start = 0
  for _ in range(6):
    with writer(tmp_path, start, 20_000) as process:
      process.stdout.readline()
      time.sleep(draw.uniform(0, 0.3))
      process.kill()
      told = process.communicate(timeout=60)[0].split()
    done = int(told[-1]) if told else start
    whole = check_whole(tmp_path)
    assert whole >= set(range(done))
    # All of the call in flight, or none of it.
    assert len(whole) in (done, done + done % 7 + 1)
    assert whole == set(range(len(whole)))
    start = len(whole)
  assert start > 20


def test_about_is_for_people_too(tmp_path):
  Store(tmp_path, ABOUT)
  assert json.loads(pathlib.Path(tmp_path, 'about.json').read_text()) == ABOUT
