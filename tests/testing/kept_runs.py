"""A small run to recommend from, events for it, and what must be equal."""

import contextlib
import functools
import json
import pathlib
from unittest import mock

import jax
import ml_collections
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax import Recommender
from tests.testing import logs
from tests.testing import run_folders

VARIANT = 'jodie'  # parameters by user and by item, which grow
NUM_EVENTS = 48
FIRST_TIME = 1_700_000_000  # unix seconds, later than the log of `make`


def make(folder: pathlib.Path, variant: str = VARIANT) -> str:
  """Writes the run folder of a system before training, and its log.

  Args:
    folder: for all of it.
    variant: of tests/testing/variants.py.

  Returns:
    The run folder.
  """
  log = logs.random_log(
    3, num_users=12, num_items=15, num_events=150, num_times=70
  )
  config = run_folders.config_of(variant, log, folder)
  run_folders.save_untrained(config, str(folder / 'run'))
  return str(folder / 'run')


def build_once() -> contextlib.AbstractContextManager:
  """A context in which the system is built once.

  A system is a tuple of functions; what is compiled for it serves whoever has
  the same ones.
  """
  module = config_lib.system_module(VARIANT)
  build = functools.cache(
    lambda fields, build=module.build: build(
      ml_collections.ConfigDict(json.loads(fields))
    )
  )
  return mock.patch.object(
    module, 'build', lambda config: build(config.to_json())
  )


def events(first: int, seed: int = 0) -> list[dict]:
  """Events after a time: at equal times, late, of new users and new items.

  No two of them are of one user, item and time.
  """
  rng = np.random.default_rng(seed)
  made = []
  for number in range(NUM_EVENTS):
    late = 5_000 if number % 11 == 10 else 0
    event = {
      'user': f'u{rng.integers(12) + 1}',
      'item': f'i{rng.integers(15) + 1}',
      'time': first + 1 + 100 * (number // 3) - late,
    }
    if number % 9 == 4:
      event |= {'user': f'new {number}'}
    if number % 13 == 7:
      event |= {'item': f'new {number}', 'title': f'a new title {number}'}
    made.append(event)
  unique = {tuple(event.values())[:3] for event in made}
  assert len(unique) == NUM_EVENTS
  return made


def assert_equal(one: Recommender, other: Recommender) -> None:
  """State and answers of two recommenders are equal to the last bit."""
  saved, found = one.saved(), other.saved()
  assert saved.record == found.record
  assert saved.arrays.keys() == found.arrays.keys()
  for name, array in saved.arrays.items():
    a, b = np.asarray(array), np.asarray(found.arrays[name])
    np.testing.assert_array_equal(a, b, name, strict=True)
    assert _place(array) == _place(found.arrays[name]), f'{name}: more programs'
  users = [*one.users, 'nobody']
  for a, b in zip(one.recommend(users), other.recommend(users), strict=True):
    assert a.items == b.items and a.titles == b.titles
    np.testing.assert_array_equal(a.scores, b.scores)


def _place(array) -> tuple | None:
  """What decides, besides its shape, which program takes an array."""
  is_there = isinstance(array, jax.Array)
  return (array.sharding, array.committed) if is_there else None


def named_leaves(tree) -> list:
  """The arrays of a pytree with their names."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='.'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]
