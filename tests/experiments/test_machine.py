"""What the machine can do, and how long a command takes to start."""

import sys

import pytest

from dynllm_jax.types import InputError
from experiments import machine_use
from experiments import start_up


def test_peaks_are_positive():
  assert machine_use.gemm_peak(64, repeats=1) > 0
  assert machine_use.copy_rate(1 << 10, repeats=1) > 0
  assert list(machine_use.gemm_rates([(8, 4, 2)], repeats=1)) == ['8x4x2']


PROGRESS = """
import time
from dynllm_jax.progress import Progress
bar = Progress('training', 100_000)
time.sleep(0.3)
bar(2_048, 0.5)
time.sleep(60)
"""


@pytest.mark.slow
def test_start_up_ends_with_the_first_step():
  seconds = start_up.seconds_to_first_step([sys.executable, '-c', PROGRESS])
  assert 0.3 < seconds < 50


def test_start_up_says_what_a_command_said_that_failed():
  with pytest.raises(InputError, match='no such luck'):
    start_up.seconds_to_first_step(
      [sys.executable, '-c', 'raise SystemExit("no such luck")']
    )
