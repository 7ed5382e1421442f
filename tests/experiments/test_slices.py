"""Training slice by slice, ours and a peer's, and the phases of a step."""

import dataclasses
import subprocess
import sys
import types

import numpy as np
import pytest

from experiments import phases
from experiments import random_logs
from experiments import slices as slices_lib
from tests.testing import ROOT
from tests.testing import tiny_slices

# Seconds that each program takes by the test's clock, in the order of the runs.
PHASE_PROGRAMS = {
  'lookup': 1.0,
  'update': 3.0,
  'forward': 10.0,
  'gradient': 30.0,
  'step': 60.0,
}


def clock(*rounds):
  """A module `time` whose counter is read before and after each program."""
  now, readings = 0.0, []
  for seconds in rounds:
    for took in seconds.values():
      readings += [now, now + took]
      now += took + 0.5
  return types.SimpleNamespace(perf_counter=iter(readings).__next__)


@pytest.mark.slow
def test_slices_go_through_the_log_and_begin_again():
  _, slices = tiny_slices.build('tgn')
  sizes = [slices.step()[0] for _ in range(slices.num_slices + 1)]
  assert sizes[0] == sizes[-1]
  seen = slices.plan.batches[: 2 * slices.num_slices]
  assert sum(sizes[:-1]) == seen.size.sum()
  assert int(slices.state.step) == 2 * len(sizes)
  assert slices.peak_bytes() > 0 and slices.bytes_per_step() > 0


@pytest.mark.slow  # compiles four programs
def test_a_phase_is_what_a_program_takes_beyond_another(monkeypatch):
  """By a clock of which each program takes seconds of its own."""
  config, slices = tiny_slices.build('tgn')
  warm_up = dict.fromkeys(PHASE_PROGRAMS, 100.0)
  monkeypatch.setattr(phases, 'time', clock(warm_up, *[PHASE_PROGRAMS] * 2))
  before = int(slices.state.step)
  found = phases.milliseconds(slices, config.model, repeats=2)
  assert int(slices.state.step) == before
  batches = len(slices.batches())
  seconds = {name: ms * batches / 1e3 for name, ms in found.items()}
  assert seconds == pytest.approx(
    {
      'lookup': 1.0,
      'update': 3.0,
      'embed': 6.0,
      'backward': 20.0,
      'optimizer': 30.0,
      'step': 60.0,
    }
  )


def test_slices_at_even_distances_reach_the_end():
  _, slices = tiny_slices.build('tgn')
  _, few = tiny_slices.build('tgn', spread=3)
  assert few.num_slices == 3
  starts = few.plan.batches.start[0::2]
  seen = []
  for few._next in range(3):
    seen.append(few.batches().start[0])
  last = slices.num_slices - 1
  assert seen == [starts[0], starts[last // 2], starts[last]]


def test_crowding_counts_events_and_distinct_times():
  log = dataclasses.replace(
    random_logs.uniform(6, 3, 5),
    users=np.array([1, 1, 1, 2, 2, 3], np.int32),
    items=np.array([1, 2, 3, 4, 4, 4], np.int32),
    times=np.array([0, 0, 0, 5, 6, 7]),
  )
  _, slices = tiny_slices.build('tgn', log=log)
  assert slices_lib.crowding(slices) == (3, 3.0)


@pytest.mark.slow
def test_the_peer_trains_slice_by_slice(tmp_path):
  pytest.importorskip('torch_geometric')
  log = random_logs.uniform(120, 10, 15)
  np.savez(
    tmp_path / 'log.npz', users=log.users, items=log.items, times=log.times
  )
  done = subprocess.run(
    [
      sys.executable,
      str(ROOT / 'experiments' / 'peer_tgn.py'),
      str(tmp_path / 'log.npz'),
      '20',
      '3',
      '8',
      '40',
      'cpu',
    ],
    input='go\ngo\n',
    capture_output=True,
    text=True,
    check=True,
  )
  name, *seconds = done.stdout.splitlines()
  assert name.startswith('torch_geometric') and len(seconds) == 2
  assert all(float(s) > 0 for s in seconds)
