"""Ctrl-C ends a process that does not listen, in one line."""

import signal
import subprocess
import sys

import pytest

from dynllm_jax.runs import interrupts

PROGRAM = """
from dynllm_jax.runs import interrupts
with interrupts.end_in_one_line('stopped: go on'):
  print('started', flush=True)
  {work}
"""
# A library's own code, which returns to Python after minutes; plain Python.
WORK = {
  'deaf': "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
  'python': 'import time; time.sleep(60)',
}


@pytest.mark.parametrize('work', WORK)
def test_one_line_and_the_status_of_an_interrupt(work):
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM.format(work=WORK[work])],
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  assert process.stdout.readline() == 'started\n'
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == interrupts.STATUS
  assert errors.strip() == 'stopped: go on'


@pytest.fixture
def pythons_own():
  """Python's handler: a process in the background ignores the signal."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('pythons_own')
def test_afterwards_an_interrupt_is_pythons_own():
  with pytest.raises(ValueError, match='as it was'):
    with interrupts.end_in_one_line('stopped'):
      raise ValueError('as it was')
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
