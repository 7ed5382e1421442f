"""Snapshots as files: whole, checked, the last two."""

import errno

import numpy as np
import pytest

from dynllm_jax.live import snapshots
from dynllm_jax.live.journal import Tip
from dynllm_jax.live.snapshots import Snapshot
from dynllm_jax.types import InputError


def snapshot(position, run='run'):
  rng = np.random.default_rng(position)
  arrays = {
    'memory.user': rng.normal(size=(3, 4)).astype(np.float32),
    'text': rng.normal(size=(2, 5)).astype(np.float16),
    'known': np.array([True, False]),
    'step': np.int32(position),
    'none': np.zeros([0, 4], np.int32),
  }
  tip = Tip(position, bytes([position] * 16))
  return Snapshot(run, tip, {'ids': ['a', 'ü'], 'newest': position}, arrays)


def assert_same(found, wanted):
  assert found[:3] == wanted[:3]
  assert found.arrays.keys() == wanted.arrays.keys()
  for name, array in wanted.arrays.items():
    np.testing.assert_array_equal(found.arrays[name], array, strict=True)


@pytest.fixture
def folder(tmp_path):
  for position in (1, 2, 12):
    snapshots.save(tmp_path / 'live', snapshot(position))
  return tmp_path / 'live'


def test_the_last_two_are_kept(folder):
  lines = []
  found = list(snapshots.stored(folder, 'run', lines.append))
  assert [s.tip.position for s in found] == [12, 2]
  assert_same(found[0], snapshot(12))
  assert_same(found[1], snapshot(2))
  assert not lines


@pytest.mark.parametrize('place', [0, 40, 200, -1, 'cut'])
def test_a_damaged_one_gives_way_to_the_one_before(folder, place):
  newest = max(folder.iterdir())
  content = bytearray(newest.read_bytes())
  if place == 'cut':
    content = content[:-20]
  else:
    content[place] ^= 1
  newest.write_bytes(content)
  lines = []
  (found,) = snapshots.stored(folder, 'run', lines.append)
  assert_same(found, snapshot(2))
  assert len(lines) == 1 and 'is damaged' in lines[0]


def test_another_runs_snapshots_are_left_alone(folder):
  lines = []
  assert not list(snapshots.stored(folder, 'other', lines.append))
  assert len(lines) == 2 and 'another run' in lines[0]
  assert not list(snapshots.stored(folder / 'none', 'run', lines.append))


def test_a_full_disk_leaves_what_is_there(folder, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  before = sorted(path.name for path in folder.iterdir())
  with pytest.raises(InputError, match='No space left'):
    snapshots.save(folder, snapshot(13))
  assert sorted(path.name for path in folder.iterdir()) == before
