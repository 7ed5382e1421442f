"""What experiments/accelerator.py makes of its processes' answers."""

from collections.abc import Sequence
import json
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from dynllm_jax.types import InputError
from experiments import pages
from experiments import slices as slices_lib

BATCH = 2048  # events of a timed step, ours and the peer's


class Case(NamedTuple):
  """A system that is timed.

  Attributes:
    label: its name on the page.
    system: as --config=FILE:SYSTEM takes it.
    xla_flags: added to the environment's.
  """

  label: str
  system: str
  xla_flags: str


def cases(systems: Sequence[str], also: Sequence[str]) -> list[Case]:
  """What is timed.

  Args:
    systems: with the flags of the environment.
    also: values of --also.

  Raises:
    InputError: if one of these has not three parts.
  """
  found = [Case(system, system, '') for system in systems]
  for value in also:
    if value.count('|') != 2:
      raise InputError(f'--also: {value!r}; allowed: LABEL|SYSTEM|XLA_FLAGS')
    found.append(Case(*value.split('|')))
  return found


def profile(slices: slices_lib.Slices) -> dict[str, Any]:
  """The kernels of one slice.

  Args:
    slices: already compiled.

  Returns:
    `steps`, `wall_ms` (under the tracer), `kernels` (launches), `busy_ms` (the
    union of their times on the device), and `top`, the costliest names as
    (name, launches, ms).
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      events, seconds = slices.step()
    path = next(pathlib.Path(folder).rglob('*.xplane.pb'))
    data = jax.profiler.ProfileData.from_file(str(path))

  spans, totals = [], {}
  for plane in data.planes:
    if not plane.name.startswith('/device:'):
      continue
    for line in plane.lines:
      if not line.name.startswith('Stream'):
        continue
      for event in line.events:
        spans.append((event.start_ns, event.start_ns + event.duration_ns))
        count, spent = totals.get(event.name, (0, 0.0))
        totals[event.name] = count + 1, spent + event.duration_ns

  busy, end = 0.0, 0.0
  for start, stop in sorted(spans):
    busy += max(0.0, stop - max(start, end))
    end = max(end, stop)
  top = sorted(totals.items(), key=lambda entry: -entry[1][1])[:40]
  return {
    'steps': -(-events // slices.plan.batch_size),
    'wall_ms': 1e3 * seconds,
    'kernels': len(spans),
    'busy_ms': busy / 1e6,
    'top': [[name, count, ns / 1e6] for name, (count, ns) in top],
  }


def compare_runs(one: pathlib.Path, other: pathlib.Path) -> dict[str, Any]:
  """How far the ranks and the parameters of two runs are apart.

  Args:
    one: a run folder.
    other: of the same configuration.

  Returns:
    By split, `equal` ranks as a share and the `largest` difference of a rank;
    `identical`, whether all ranks are equal; and how many `arrays` a checkpoint
    has, with how many of them `arrays_equal`.
  """
  found: dict[str, Any] = {}
  sums = [_checksums(folder) for folder in (one, other)]
  found['arrays'] = len(sums[0])
  found['arrays_equal'] = sum(
    sums[1].get(name) == value for name, value in sums[0].items()
  )
  ranks = [np.load(folder / 'ranks.npz') for folder in (one, other)]
  splits = [name for name in ranks[0].files if not name.endswith('_users')]
  for name in splits:
    a, b = (np.asarray(r[name], np.int64) for r in ranks)
    found[name] = {
      'events': int(a.size),
      'equal': float(np.mean(a == b)),
      'largest': int(np.max(np.abs(a - b), initial=0)),
    }
  found['identical'] = all(
    np.array_equal(ranks[0][name], ranks[1][name]) for name in splits
  )
  return found


def _checksums(workdir: pathlib.Path) -> dict[str, Any]:
  """The checksums of the latest checkpoint's arrays."""
  record = max(workdir.glob('checkpoints/latest/*/status/metadata'))
  return json.loads(record.read_text())['arrays']


def speed_page(found: dict[str, Any]) -> list[str]:
  """The table of speeds."""
  rows = []
  for label, of_one in found.items():
    if not isinstance(of_one, dict):
      continue
    kernels = of_one.get('profile', {})
    steps = kernels.get('steps', 1)
    rows.append(
      [
        f'{label}: {of_one["about"]}' if 'about' in of_one else label,
        _shown(of_one, 'events_per_s'),
        f'{1e3 * BATCH / of_one["events_per_s"]:.2f}'
        if 'events_per_s' in of_one
        else 'failed',
        f'{kernels["kernels"] / steps:.0f}' if 'kernels' in kernels else '-',
        f'{kernels["busy_ms"] / steps:.2f}' if 'kernels' in kernels else '-',
        _shown(of_one, 'device_peak_mb'),
        _shown(of_one, 'compile_s'),
      ]
    )
  headings = [
    'system',
    'events/s',
    'ms a step',
    'kernels a step',
    'busy ms a step',
    'peak MB',
    'compile s',
  ]
  return [
    '## Training speed',
    '',
    *pages.table(headings, rows),
    '',
    f'A product of two matrices of side {found["gemm_side"]:,} in float32, at '
    "JAX's default precision, reaches "
    f'{found["gemm_peak_tflop_per_s"]:.0f} TFLOP/s.',
    '',
  ]


def _shown(figures: dict[str, Any], name: str) -> str:
  return f'{figures[name]:,.0f}' if name in figures else '-'


def run_page(system: str, run: dict[str, Any]) -> list[str]:
  """What two runs on the device, and one beside it, have in common."""
  if 'failed' in run:
    return [f'## One epoch of {system}, by the command', '', 'failed', '']
  two, beside = run['two_runs'], run['device_and_cpu']
  splits = [name for name, value in beside.items() if isinstance(value, dict)]
  return [
    f'## One epoch of {system}, by the command',
    '',
    '- two runs on the device: '
    + (
      'equal bit for bit, ranks and every array of the checkpoint'
      if two['identical'] and two['arrays_equal'] == two['arrays']
      else f'not equal: {two["arrays_equal"]} of {two["arrays"]} arrays of '
      'the checkpoint'
    ),
    *(
      f'- {name}, device beside processors: {beside[name]["equal"]:.4%} of '
      f'{beside[name]["events"]:,} ranks are equal, the largest difference is '
      f'{beside[name]["largest"]:,}'
      for name in splits
    ),
    '',
  ]
