"""Scaling over devices, from compiled programs: work and bytes, not time.

`python -m experiments.scaling_devices` compiles the training and the ranking
step for meshes of fake CPU devices, counts what one device computes and what
it sends (XLA's cost analysis and the collectives of the compiled text), and
projects a slice of 256 chips from the TPU programs that
experiments/tpu_compile.py has compiled. `experiments.scaling` runs it too. Two
cores cannot tell more: eight fake devices share them.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import app
from absl import flags

from dynllm_jax import progress
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic

RESULTS = pathlib.Path(__file__).parent / 'results'
TMALL = dict(
  users=5_651, items=10_333, events=258_390, windows=24, texts=60_000
)
# Of a v5e chip, as published by its vendor.
FLOPS_PER_S = 197e12 / 4  # float32 products take several bfloat16 passes
MEMORY_BYTES_PER_S = 819e9
LINK_BYTES_PER_S = 45e9  # a direction of one of four links of 1,600 Gbit/s
CHIP_BYTES = 16 * 2**30


def measure(
  shape: tuple[int, int], batch_size: int, devices: int = 8
) -> dict[str, Any]:
  """What one device of a mesh does in a training step, compiled here.

  Args:
    shape: of the mesh, `data` x `nodes`.
    batch_size: events of a step, over all devices.
    devices: fake CPU devices of the process that compiles.

  Returns:
    `flops`, `collective_bytes`, `collectives`, `arguments_bytes` and so on.
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


def _measure_here(shape, batch_size):
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


def step_seconds(facts: dict[str, Any]) -> dict[str, float]:
  """Lower bounds of a step's seconds on a v5e chip, by what bounds it.

  Assumed: the vendor's rates, one link's bandwidth for every collective, no
  overlap of the three, bytes accessed as XLA counts them (a gather counts its
  whole table, so memory is an upper bound of its part).
  """
  return {
    'compute': facts['flops'] / FLOPS_PER_S,
    'memory': facts['bytes_accessed'] / MEMORY_BYTES_PER_S,
    'links': facts['collective_bytes'] / LINK_BYTES_PER_S,
  }


def aims(rows: list[dict[str, Any]], tpu: dict[str, Any]) -> list[dict]:
  """What the rows are to show, each with its value and whether it is met.

  Args:
    rows: of `measure`: strong scaling (one batch) and weak (a batch a device).
    tpu: of experiments/tpu_compile.py, by name; empty where it has not run.
  """
  by = {(tuple(r['shape']), r['batch_size']): r for r in rows}
  one = by.get(((1, 1), 2048))
  found = []

  def aim(name, value, wanted, met):
    found.append(dict(name=name, value=value, wanted=wanted, met=met))

  # Work of all devices (strong), or of one (weak), by that of one alone.
  for name, shape, batch_size, count in (
    ('strong_8x1_total_work', (8, 1), 2048, 8),
    ('strong_1x8_total_work', (1, 8), 2048, 8),
    ('strong_4x2_total_work', (4, 2), 2048, 8),
    ('weak_8x1_work_a_device', (8, 1), 16_384, 1),
  ):
    row = by.get((shape, batch_size))
    if one is None or row is None:
      aim(name, None, '<=2', None)
    else:
      share = row['flops'] * count / one['flops']
      aim(name, round(share, 2), '<=2', share <= 2)
  for name in (
    'v5e_2x2_tmall',
    'v5e_4x4_tmall',
    'v5e_16x16_tmall',
    'v5e_16x16_huge',
  ):
    facts = tpu.get(name)
    for part in ('train', 'rank'):
      label = f'{name}_{part}_gib_a_chip'
      if facts is None:
        aim(label, None, '<=15', None)
      else:
        gib = facts[part]['peak_bytes'] / 2**30
        aim(
          label,
          round(gib, 2),
          '<=15',
          gib <= 15 and not facts[part]['whole_tables'],
        )
  return found


def line(aim: dict[str, Any]) -> str:
  """An aim as `aim=<name> value=.. wanted=.. met=<yes|no|not run>`."""
  met = {True: 'yes', False: 'no', None: 'not run'}[aim['met']]
  return (
    f'aim={aim["name"]} value={aim["value"]} wanted={aim["wanted"]} met={met}'
  )


def page(rows, tpu, found, commit) -> str:
  """The results as a page."""
  lines = [
    '# Scaling over devices',
    '',
    'A training step of `dynllm` at Tmall size (d 128, 2 layers, 3 '
    'neighbors), compiled for fake CPU devices: what ONE device computes '
    "and moves, by XLA's cost analysis and the collectives of the compiled "
    'text. A loop of the ordered update counts for one round. No time was '
    f'measured: the devices share two cores. Commit {commit}.',
    '',
    '| mesh | events a step | GFLOP | tables and state, MB | collectives | '
    'their MB |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    count = sum(c['count'] for c in row['collectives'].values())
    lines.append(
      f'| {row["shape"][0]} x {row["shape"][1]} | {row["batch_size"]:,} | '
      f'{row["flops"] / 1e9:.2f} | {row["arguments_bytes"] / 1e6:.1f} | '
      f'{count} | {row["collective_bytes"] / 1e6:.2f} |'
    )
  if tpu:
    lines += [
      '',
      '## Compiled for TPU v5e',
      '',
      'No TPU was there. Commit '
      f'{", ".join(sorted({f["commit"] for f in tpu.values()}))}. GiB as '
      "the compiler's memory analysis has them, of 16 a chip. MB of collectives: of a training step, and of one "
      'block of the catalogue when ranking.',
      '',
      '| slice | mesh | program | GiB a chip | GFLOP | collectives | their '
      'MB | whole tables |',
      '|---|---|---|---|---|---|---|---|',
    ]
    for name, facts in tpu.items():
      for part in ('train', 'rank'):
        f = facts[part]
        count = sum(c['count'] for c in f['collectives'].values())
        lines.append(
          f'| {name} | {facts["mesh"]} | {part} | '
          f'{f["peak_bytes"] / 2**30:.2f} | {f["flops"] / 1e9:.2f} | '
          f'{count} | {f["collective_bytes"] / 1e6:.2f} | '
          f'{", ".join(f["whole_tables"]) or "none"} |'
        )
    huge = tpu.get('v5e_16x16_huge')
    if huge:
      seconds = step_seconds(huge['train'])
      lines += [
        '',
        '## Projection, 256 chips',
        '',
        f'A step of {huge["batch_size"]:,} events at '
        f'{huge["size"]["users"]:,} users, {huge["size"]["items"]:,} items '
        f'and {huge["size"]["events"]:,} events: '
        + ', '.join(
          f'{name} {1e3 * value:.1f} ms' for name, value in seconds.items()
        )
        + '. Assumed: a quarter of 197 TFLOP/s, 819 GB/s of memory, 45 GB/s '
        'of one link for every collective, nothing overlapped. The memory '
        'figure counts whole tables for a gather of a few rows and is far '
        'too high; rounds of the ordered update beyond the first are '
        'counted nowhere. Nothing was measured on a TPU.',
      ]
  lines += ['', '## Aims', '', '```', *(line(aim) for aim in found), '```', '']
  return '\n'.join(lines)


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
  found = aims(rows, tpu)
  for aim in found:
    progress.say(line(aim))
  commit = provenance.commit()
  atomic.write_atomically(
    RESULTS / 'scaling_devices.json',
    json.dumps(
      {'commit': commit, 'steps': rows, 'tpu': tpu, 'aims': found}, indent=1
    )
    + '\n',
  )
  atomic.write_atomically(
    RESULTS / 'scaling_devices.md', page(rows, tpu, found, commit)
  )


def main(argv: list[str]) -> None:
  """With --one a mesh, else everything."""
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
