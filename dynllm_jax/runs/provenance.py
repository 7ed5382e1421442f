"""Where a run's figures come from: the commit, the machine, its memory."""

import importlib.metadata
import os
import pathlib
import platform
import resource
import subprocess
from typing import Any

import jax

import dynllm_jax


def commit() -> str:
  """The commit of the running code, or its version where there is no git."""
  folder = pathlib.Path(__file__).parent

  def git(*args: str) -> str:
    return subprocess.run(
      ['git', '-C', str(folder), *args],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    # Results that experiments write are no code, and do not count as changes.
    changed = git(
      'status',
      '--porcelain',
      '-uno',
      '--',
      ':/',
      ':(top,exclude)experiments/results',
    )
    dirty = '-modified' if changed else ''
    return git('rev-parse', 'HEAD') + dirty
  except (OSError, subprocess.CalledProcessError):
    return f'dynllm_jax {dynllm_jax.__version__}, outside a git checkout'


def machine() -> dict[str, Any]:
  """What the figures were measured on."""
  devices = jax.devices()
  return {
    'platform': devices[0].platform,
    'device': devices[0].device_kind,
    'devices': len(devices),
    'processes': jax.process_count(),
    'processor': platform.processor() or platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': importlib.metadata.version('flax'),
  }


def peak_memory_bytes() -> int:
  """The most resident memory that this process has had."""
  # Linux counts it in KiB.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
