"""Rows and events that devices share, on eight fake devices."""

import subprocess
import sys

from tests.testing import commands
from tests.testing import ROOT


def test_a_mesh_answers_and_updates_as_one_device_does():
  """Also that what does not fit is NaN (tests/testing/sharing.py)."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.testing.sharing'],
    cwd=ROOT,
    env=commands.on_devices(8),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.stdout.strip() == 'equal', done.stderr[-2000:]
