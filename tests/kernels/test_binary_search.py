"""Both forms of a binary search against Python's bisect."""

import bisect

import numpy as np
import pytest

from dynllm_jax.kernels import binary_search
from dynllm_jax.kernels import platforms

_VALUES = np.array([1, 1, 4, 9, 2, 2, 2, 7, 7, 8, 0], np.int32)
_SLICES = [(0, 4), (4, 10), (10, 11), (3, 3)]


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('in_line', [False, True])
def test_a_slice_is_searched_as_bisect_does(side, in_line, monkeypatch):
  if in_line:
    monkeypatch.setattr(
      platforms, 'on_gpu', lambda own, other, *args: own(*args)
    )
  targets = np.arange(-1, 11, dtype=np.int32)
  low, high = (
    np.repeat(np.array(ends, np.int32), len(targets)) for ends in zip(*_SLICES)
  )
  target = np.tile(targets, len(_SLICES))
  find = bisect.bisect_left if side == 'left' else bisect.bisect_right
  wanted = [
    find(_VALUES.tolist(), t, a, b) for t, a, b in zip(target, low, high)
  ]
  found = binary_search.search(_VALUES, low, high, target, 6, side)
  assert np.asarray(found).tolist() == wanted


def test_a_whole_array_is_searched_as_by_numpy():
  values = np.sort(_VALUES)
  target = np.array([[-5, 0], [7, 100]], np.int32)
  np.testing.assert_array_equal(
    binary_search.find(values, target), np.searchsorted(values, target)
  )
