"""How long the command takes until its first training step."""

import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time

from dynllm_jax.types import InputError
from experiments import aims

_LIMIT_S = 300.0
# What the progress bar shows after the first chunk of batches; until then it
# stands at 0.
_FIRST_STEP = re.compile(rb'training:[^\r\n]*\| *(?!0\.00)[\d.]+k?/')


def seconds_to_first_step(command: list[str]) -> float:
  """Runs a command until its progress bar moves, then ends it.

  The command gets a terminal, since it shows no bar elsewhere.

  Args:
    command: with its arguments.

  Returns:
    Seconds since the process was started.

  Raises:
    InputError: if the command ends first, or five minutes pass.
  """
  master, terminal = pty.openpty()
  # A terminal without a width would have a bar of no width.
  fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', 25, 100, 0, 0))
  began = time.perf_counter()
  process = subprocess.Popen(
    command, stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL
  )
  os.close(terminal)

  seen = b''
  try:
    while not _FIRST_STEP.search(seen):
      left = began + _LIMIT_S - time.perf_counter()
      if not select.select([master], [], [], max(left, 0.0))[0]:
        raise InputError(f'{command}: no training step in {_LIMIT_S:.0f} s')
      try:
        seen += os.read(master, 4096)
      except OSError as error:  # the terminal is closed: the command is over
        raise InputError(
          f'{command}: ended before its first training step; it said: '
          f'{seen[-2000:].decode(errors="replace")}'
        ) from error
    return time.perf_counter() - began
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.close(master)


def measure(size: str) -> aims.Found:
  """Times the start of configs/tmall.py, after a run that fills the caches.

  The bar moves once for each chunk of batches, so chunks of one batch show the
  first step itself.

  Args:
    size: of the simulated log.

  Returns:
    `value`, the median of three runs, and `first_run_s`.
  """
  with tempfile.TemporaryDirectory() as folder:
    times = [
      seconds_to_first_step(
        [
          sys.executable,
          '-m',
          'dynllm_jax.main',
          '--config=configs/tmall.py',
          f'--workdir={folder}/{run}',
          f'--config.data.size={size}',
          '--config.train.chunk=1',
        ]
      )
      for run in range(4)
    ]
  return {'value': statistics.median(times[1:]), 'first_run_s': times[0]}
