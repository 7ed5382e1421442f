"""Scaling over devices, from compiled programs: work and bytes, not time.

`python -m experiments.scaling_devices` compiles the training step for meshes of
fake CPU devices and counts what one device computes and sends (from XLA's cost
analysis and the collectives of the compiled text). It projects a slice of 256
chips from the TPU programs that experiments/tpu_compile.py has compiled. Times
would say nothing, since eight fake devices share two cores.
`experiments.scaling` runs this, too.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from experiments import pages
from experiments import tpu_projection
from experiments import update_load
from experiments.update_load import Load

RESULTS = pathlib.Path(__file__).parent / 'results'
TMALL = dict(
  users=5_651, items=10_333, events=258_390, windows=24, texts=60_000
)


def measure(
  shape: tuple[int, int], batch_size: int, devices: int = 8
) -> dict[str, Any]:
  """What one device of a mesh does in a training step.

  A process of its own compiles the step, since the number of fake devices is
  fixed when JAX starts.

  Args:
    shape: of the mesh, `data` x `nodes`.
    batch_size: events of a step, over all devices.
    devices: fake CPU devices of the process.

  Returns:
    `shape`, `batch_size` and the facts of experiments/compiled.py.
  """
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.scaling_devices',
      '--one',
      f'--shape={shape[0]}x{shape[1]}',
      f'--batch_size={batch_size}',
    ],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def _measure_here(shape: tuple[int, int], batch_size: int) -> dict[str, Any]:
  """`measure` in this process, which must have enough devices."""
  import jax
  import numpy as np

  from dynllm_jax import config as config_lib
  from experiments import compiled

  config = config_lib.default('dynllm')
  config.train.batch_size = batch_size

  count = shape[0] * shape[1]
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:count]).reshape(shape), ('data', 'nodes')
  )
  programs = compiled.lower(config, compiled.LogSize(**TMALL), mesh)
  facts = compiled.facts(programs.train.compile())
  return {'shape': list(shape), 'batch_size': batch_size, **facts}


class Aim(NamedTuple):
  """An upper bound of a figure, and whether it is kept."""

  name: str
  value: float | None  # None where it was not measured
  wanted: str
  met: bool | None


def judge(
  rows: list[dict[str, Any]], tpu: dict[str, dict[str, Any]]
) -> list[Aim]:
  """The aims, each with its value and whether it is met.

  Args:
    rows: of `measure`, for strong scaling (one batch size) and for weak
      scaling (a batch for each device).
    tpu: results of experiments/tpu_compile.py by name, empty where it has not
      run.

  Returns:
    First the work of several devices, then the memory of TPU chips.
  """
  by = {(tuple(r['shape']), r['batch_size']): r for r in rows}
  one = by.get(((1, 1), 2048))
  found = []
  # Strong scaling compares the work of all devices with that of a single one,
  # weak scaling that of one device.
  for name, shape, batch_size, count in (
    ('strong_8x1_total_work', (8, 1), 2048, 8),
    ('strong_1x8_total_work', (1, 8), 2048, 8),
    ('strong_4x2_total_work', (4, 2), 2048, 8),
    ('weak_8x1_work_a_device', (8, 1), 16_384, 1),
  ):
    row = by.get((shape, batch_size))
    if one is None or row is None:
      found.append(Aim(name, None, '<=2', None))
    else:
      share = row['flops'] * count / one['flops']
      found.append(Aim(name, round(share, 2), '<=2', share <= 2))

  for case, part in itertools.product(
    ('v5e_2x2_tmall', 'v5e_4x4_tmall', 'v5e_16x16_tmall', 'v5e_16x16_huge'),
    ('train', 'rank'),
  ):
    name = f'{case}_{part}_gib_a_chip'
    if case not in tpu:
      found.append(Aim(name, None, '<=15', None))
    else:
      facts = tpu[case][part]
      gib = facts['peak_bytes'] / 2**30
      met = gib <= 15 and not facts['whole_tables']
      found.append(Aim(name, round(gib, 2), '<=15', met))
  return found


def line(aim: Aim) -> str:
  """An aim as `aim=<name> value=.. wanted=.. met=<yes|no|not run>`."""
  met = {True: 'yes', False: 'no', None: 'not run'}[aim.met]
  return f'aim={aim.name} value={aim.value} wanted={aim.wanted} met={met}'


def page(
  rows: list[dict[str, Any]],
  tpu: dict[str, dict[str, Any]],
  found: list[Aim],
  commit: str,
  load: Load | None = None,
) -> str:
  """The results as a page.

  Args:
    rows: of `measure`.
    tpu: as of `judge`.
    found: of `judge`.
    commit: that `rows` were compiled at.
    load: of the ordered update on 256 chips.

  Returns:
    Markdown.
  """
  table = pages.table(
    [
      'mesh',
      'events a step',
      'GFLOP',
      'tables and state, MB',
      'collectives',
      'MB of collectives',
    ],
    [
      [
        f'{row["shape"][0]} x {row["shape"][1]}',
        f'{row["batch_size"]:,}',
        f'{row["flops"] / 1e9:.2f}',
        f'{row["arguments_bytes"] / 1e6:.1f}',
        _count(row),
        f'{row["collective_bytes"] / 1e6:.2f}',
      ]
      for row in rows
    ],
  )

  return '\n'.join(
    [
      '# Scaling over devices',
      '',
      'A training step of `dynllm` at Tmall size (d 128, 2 layers, 3 '
      'neighbors), compiled for fake CPU devices: what ONE device computes and '
      "sends, by XLA's cost analysis and the collectives of the compiled text. "
      'A loop of the ordered update counts for one round. No time was '
      f'measured, as the devices share two cores. Commit {commit}.',
      '',
      *table,
      *_tpu_page(tpu),
      *tpu_projection.page(tpu, load),
      '',
      '## Aims',
      '',
      '```',
      *(line(aim) for aim in found),
      '```',
      '',
    ]
  )


def _count(facts: dict[str, Any]) -> int:
  """How many collectives a program has."""
  return sum(c['count'] for c in facts['collectives'].values())


def _tpu_page(tpu: dict[str, dict[str, Any]]) -> list[str]:
  """The part of the page on TPU programs; nothing where there are none."""
  if not tpu:
    return []
  commits = sorted({facts['commit'] for facts in tpu.values()})
  return [
    '',
    '## Compiled for TPU v5e',
    '',
    f'Without a TPU. Commit {", ".join(commits)}. GiB are from the memory '
    "analysis of the compiler; a chip has 16. A row's collectives are those of "
    'a training step, or of one block of the catalogue in ranking. "Whole '
    'tables" names the shared tables that a program puts together on a device.',
    '',
    *pages.table(
      [
        'slice',
        'mesh',
        'program',
        'GiB a chip',
        'GFLOP',
        'collectives',
        'MB of collectives',
        'whole tables',
      ],
      [
        [
          name,
          case['mesh'],
          part,
          f'{case[part]["peak_bytes"] / 2**30:.2f}',
          f'{case[part]["flops"] / 1e9:.2f}',
          _count(case[part]),
          f'{case[part]["collective_bytes"] / 1e6:.2f}',
          ', '.join(case[part]['whole_tables']) or 'none',
        ]
        for name, case in tpu.items()
        for part in ('train', 'rank')
      ],
    ),
  ]


def run() -> None:
  """Measures, prints the aims, writes the page."""
  rows = [
    measure(shape, batch_size)
    for shape, batch_size in (
      ((1, 1), 2048),
      ((8, 1), 2048),
      ((1, 8), 2048),
      ((4, 2), 2048),
      ((8, 1), 16_384),
    )
  ]
  file = RESULTS / 'tpu_compile.json'
  tpu = json.loads(file.read_text()) if file.exists() else {}
  found = judge(rows, tpu)
  for aim in found:
    progress.say(line(aim))

  load = None
  if 'v5e_16x16_huge' in tpu:
    data, nodes = tpu['v5e_16x16_huge']['mesh'].split(' x ')
    load = update_load.load(
      update_load.simulated_log(),
      tpu['v5e_16x16_huge']['batch_size'],
      (int(data), int(nodes)),
    )

  commit = provenance.commit()
  atomic.write_atomically(
    RESULTS / 'scaling_devices.json',
    json.dumps(
      {
        'commit': commit,
        'steps': rows,
        'tpu': tpu,
        'update': load and load._asdict(),
        'aims': [aim._asdict() for aim in found],
      },
      indent=1,
    )
    + '\n',
  )
  atomic.write_atomically(
    RESULTS / 'scaling_devices.md', page(rows, tpu, found, commit, load)
  )


def main(argv: list[str]) -> None:
  """Compiles one mesh with --one, and everything without."""
  del argv
  if _ONE.value:
    shape = tuple(int(n) for n in _SHAPE.value.split('x'))
    print(json.dumps(_measure_here(shape, _BATCH.value)))
  else:
    run()


if __name__ == '__main__':
  _ONE = flags.DEFINE_bool('one', False, 'Compile one mesh and print it.')
  _SHAPE = flags.DEFINE_string('shape', '1x1', 'With --one: the mesh.')
  _BATCH = flags.DEFINE_integer('batch_size', 2048, 'With --one: the batch.')
  app.run(main)
