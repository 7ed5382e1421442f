"""Lookup, against a search of every profile."""

import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np

from dynllm_jax.facets.lookup import lookup
from dynllm_jax.types import FacetBank


def make_bank(closes_by_user):
  """Users 1, 2, ... with the given closes; texts number the rows."""
  counts = [0, *map(len, closes_by_user)]
  closes = np.array(sum(map(sorted, closes_by_user), []), np.int32)
  index = 1 + np.arange(4 * len(closes), dtype=np.int32).reshape(-1, 4)
  return FacetBank(
    texts=np.zeros((1 + index.size, 2), np.float16),
    offsets=np.cumsum([0, *counts]).astype(np.int32),
    closes=closes,
    index=index,
    longest=max(counts),
  )


def oracle(bank, user, time):
  best = [0, 0, 0, 0]
  for row in range(bank.offsets[user], bank.offsets[user + 1]):
    if bank.closes[row] <= time:
      best = bank.index[row].tolist()
  return best


@given(
  st.lists(st.sets(st.integers(0, 12), max_size=9), min_size=4, max_size=4)
)
@settings(max_examples=30, deadline=None)
def test_against_oracle(closes):
  bank = make_bank(closes)
  asked = list(itertools.product(range(5), range(14)))
  users, times = np.array(asked, np.int32).T
  got = lookup(bank, users, times)
  assert got.tolist() == [oracle(bank, *pair) for pair in asked]


def test_serves_from_its_close_until_the_next_one():
  bank = make_bank([{10, 30}, set()])
  times = np.array([0, 9, 10, 11, 29, 30, 2**31 - 1], np.int32)
  rows = lookup(bank, np.full(7, 1, np.int32), times)[:, 0]
  assert rows.tolist() == [0, 0, 1, 1, 1, 5, 5]
  assert not lookup(bank, np.full(7, 2, np.int32), times).any()
  assert not lookup(bank, np.zeros(7, np.int32), times).any()


def test_shapes_and_jit():
  bank = make_bank([{1, 2, 3}, {2}])
  users = np.array([[1, 2, 0], [2, 1, 1]], np.int32)
  times = np.array([[2, 2, 2], [1, 3, 0]], np.int32)
  got = jax.jit(lookup)(bank, users, times)
  assert got.shape == (2, 3, 4) and got.dtype == np.int32
  np.testing.assert_array_equal(got, lookup(bank, users, times))
  assert lookup(bank, np.int32(1), np.int32(3)).tolist() == [9, 10, 11, 12]


def test_no_rows():
  got = jax.jit(lookup)(
    make_bank([set(), set()]),
    np.ones((3, 2), np.int32),
    np.ones((3, 2), np.int32),
  )
  assert got.shape == (3, 2, 4) and not got.any()


def test_closes_near_the_end_of_int32():
  last = 2**31 - 1
  bank = make_bank([{last - 1, last}])
  users = np.ones(3, np.int32)
  times = np.array([last - 2, last - 1, last], np.int32)
  assert lookup(bank, users, times)[:, 0].tolist() == [0, 1, 5]
