"""Compiles the training and the ranking step for TPU slices, without a TPU.

`make tpu-compile`, or `python -m experiments.tpu_compile` where jax[tpu] is
installed. Prints how much of a chip's memory each program takes, and writes
experiments/results/tpu_compile.json.
"""

import importlib.util
import json
import math
import os
import pathlib
import time
from typing import Any
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).parent / 'results' / 'tpu_compile.json'


class Case(NamedTuple):
  """What is compiled for."""

  topology: str
  mesh: tuple[int, int]  # devices along `data` and `nodes`
  batch_size: int  # events of a step
  size: str  # of the log
  system: str = 'dynllm'


CASES = {
  'v5e_1_tmall_tgn': Case('v5e:2x2', (1, 1), 2048, 'tmall', 'tgn'),
  'v5e_2x2_tmall': Case('v5e:2x2', (4, 1), 2048, 'tmall'),
  'v5e_4x4_tmall': Case('v5e:4x4', (16, 1), 2048, 'tmall'),
  'v5e_16x16_tmall': Case('v5e:16x16', (256, 1), 2048, 'tmall'),
  'v5e_16x16_huge': Case('v5e:16x16', (8, 32), 65_536, 'huge'),
}


def compile_case(name: str) -> dict[str, Any]:
  """What the two programs of a case take of a chip.

  Args:
    name: of CASES.

  Returns:
    `mesh`, `batch_size`, `size`, `jax`, `commit`, and for `train` and `rank`
    the facts of experiments/compiled.py.
  """
  import jax
  from jax.experimental import topologies
  import numpy as np

  from dynllm_jax import config as config_lib
  from dynllm_jax.runs import provenance
  from experiments import compiled
  from experiments import program_text
  from experiments import update_load

  sizes = {
    'tmall': compiled.LogSize(
      users=5_651, items=10_333, events=258_390, windows=24, texts=60_000
    ),
    # Only the facet texts of a chunk of batches; the others stay on hosts.
    'huge': compiled.LogSize(
      users=100_000_000,
      items=10_000_000,
      events=2_000_000_000,
      windows=20,
      texts=1 << 22,
    ),
  }
  case = CASES[name]
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=case.topology
  ).devices[: math.prod(case.mesh)]
  mesh = jax.sharding.Mesh(
    np.array(devices).reshape(case.mesh), ('data', 'nodes')
  )
  config = config_lib.default(case.system)
  config.train.batch_size = case.batch_size
  # A device has room for as many events as the busiest gets on Tmall's skew.
  log = update_load.simulated_log()
  programs = compiled.lower(
    config,
    sizes[case.size],
    mesh,
    own_limits={
      section: update_load.limits(log, config[section].batch_size, case.mesh)
      for section in ('train', 'eval')
    },
  )

  result = {
    'mesh': f'{case.mesh[0]} x {case.mesh[1]}',
    'batch_size': case.batch_size,
    'size': sizes[case.size]._asdict(),
    'jax': jax.__version__,
    'commit': provenance.commit(),
  }
  for part in ('train', 'rank'):
    began = time.perf_counter()
    program = getattr(programs, part).compile()
    text = program.as_text()
    found = compiled.collectives(text)
    parsed = program_text.Program(text)
    result[part] = {
      **compiled.facts(program),
      'whole_tables': compiled.whole_tables(found, programs.tables),
      # Of a step, between a chip and its memory; a loop whose rounds depend on
      # the data counts once.
      'bytes_a_step': round(
        parsed.moved_by_all(parsed.step(), lambda loop: 1.0)
      ),
      'compile_seconds': round(time.perf_counter() - began, 1),
    }
    print(
      f'{name} {part}: '
      f'{result[part]["peak_bytes"] / 2**30:.2f} GiB a chip, '
      f'{result[part]["collective_bytes"] / 1e6:.2f} MB of collectives, '
      f'whole tables: {result[part]["whole_tables"] or "none"}',
      flush=True,
    )
  return result


# Of the compiler, which asks no chip and no server, and may run beside another.
_ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',  # seconds are of compiling
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}


def main() -> None:
  """Compiles the cases that the environment variable CASES names, or all."""
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  chosen = os.environ.get('CASES', ' '.join(CASES)).split()
  if unknown := set(chosen) - set(CASES):
    raise SystemExit(
      f'CASES: {min(unknown)!r}; allowed: some of {", ".join(CASES)}'
    )
  if not importlib.util.find_spec('libtpu'):
    raise SystemExit(
      "no libtpu, which compiles for a TPU; pip install -e '.[tpu]', or "
      '`make tpu-compile`'
    )

  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  for name in chosen:
    results[name] = compile_case(name)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
