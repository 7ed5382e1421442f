"""Scripts in processes of their own, which a test may kill."""

import contextlib
import signal
import subprocess
import sys

from tests.testing import ROOT


@contextlib.contextmanager
def running(script, *args):
  """Runs a script with this Python; kills it at the end of the block.

  Args:
    script: its text.
    *args: its arguments.

  Yields:
    The process; its output is a pipe of text.
  """
  process = subprocess.Popen(
    [sys.executable, '-c', script, *map(str, args)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
  try:
    yield process
  finally:
    kill(process)


def kill(process):
  """Kills a process as a lack of memory does, and waits for its end."""
  process.send_signal(signal.SIGKILL)
  process.wait()
