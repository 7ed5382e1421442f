"""Compiles the training and the ranking step for an H100, without one.

`make gpu-compile`, or `python -m experiments.gpu_compile` where jax has its
CUDA plugin and ptxas is on the PATH. Counts what a step launches and moves, and
writes experiments/results/gpu_compile.json and .md. The log is the simulated
one of Tmall's size, whose chains say how long the ordered update's loops are.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).parent / 'results' / 'gpu_compile'
CARD = pathlib.Path(__file__).parent / 'cards' / 'h100.txtpb'
SYSTEMS = ('tgn', 'dynllm', 'dynllm+text+counts')
BATCH_SIZE = 2048


class Rounds(NamedTuple):
  """Means over the batches of a log: what the ordered update's loops run.

  Attributes:
    one_side: rounds of a loop over one side's chains, mean of both sides.
    both_sides: rounds of a loop over both.
  """

  one_side: float
  both_sides: float


def rounds_of_log(users: Any, items: Any, times: Any, block: int) -> Rounds:
  """The rounds of the ordered update, the first left out (SPEC 3.10).

  Args:
    users, items, times: i32[events], the columns of a log.
    block: rows of a round that one iteration takes.
  """
  import numpy as np

  from dynllm_jax.engine import batching

  def blocks(nodes: Any, when: Any) -> Any:
    """Updates of each round, i64[rounds]."""
    pairs = np.unique(np.stack([nodes, when], axis=1), axis=0)
    _, lengths = np.unique(pairs[:, 0], return_counts=True)
    at_least = np.bincount(lengths)[::-1].cumsum()[::-1]
    return -(-at_least[2:] // block)

  one, both = [], []
  plan = batching.plan_batches(times, 0, len(times), BATCH_SIZE).batches
  for start, size in zip(plan.start, plan.size):
    at = slice(start, start + size)
    of_users, of_items = (blocks(x[at], times[at]) for x in (users, items))
    one.append((of_users.sum() + of_items.sum()) / 2)
    both.append(max(len(of_users), len(of_items)))
  return Rounds(float(np.mean(one)), float(np.mean(both)))


def simulated_rounds() -> Rounds:
  """Those of the simulated log of Tmall's size."""
  import numpy as np

  from configs import tmall
  from dynllm_jax.datasets.sources import simulated
  from dynllm_jax.graph import update_chains

  log = simulated.read(tmall.get_config('tgn').data)
  users, items = (
    np.unique(np.asarray(x), return_inverse=True)[1]
    for x in (log.users, log.items)
  )
  return rounds_of_log(users, items, np.asarray(log.times), update_chains.BLOCK)


def compile_system(name: str, rounds: Rounds) -> dict[str, Any]:
  """What the two programs of a system launch and move.

  Args:
    name: of the system, with its terms; `:FIELD=VALUE` behind it sets a field
      of its configuration.
    rounds: of the log.

  Returns:
    For `train` and `rank`, the figures of a step.
  """
  import jax
  from jax.experimental import topologies
  import numpy as np

  from dynllm_jax import config as config_lib
  from experiments import compiled

  card = topologies.get_topology_desc(
    platform='cuda',
    topology_name='h100',
    target_config=CARD.read_text(),
    topology='1x1x1',
  )
  mesh = jax.sharding.Mesh(
    np.array(card.devices[:1]).reshape(1, 1), ('data', 'nodes')
  )
  system, *fields = name.split(':')
  config = config_lib.default(system)
  config.update_from_flattened_dict(dict(f.split('=', 1) for f in fields))
  config.train.batch_size = BATCH_SIZE
  size = compiled.LogSize(
    users=5_651,
    items=10_333,
    events=258_390,
    windows=24,
    texts=60_000,
    longest=2_000,
  )
  programs = compiled.lower(config, size, mesh)
  return {
    'train': _compiled(programs.train, rounds, config.train.batch_size),
    'rank': _compiled(programs.rank, rounds, config.eval.batch_size),
  }


def _compiled(lowered: Any, rounds: Rounds, events: int) -> dict[str, Any]:
  """Compiles a program and counts what a step of it launches and moves."""
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile({'xla_dump_to': folder})
    dumps = [
      next(pathlib.Path(folder).glob(f'*{ending}')).read_text()
      for ending in (
        'thunk_sequence_after_thunk_passes.txt',
        'thunk_metadata.txt',
      )
    ]
  memory = compiled.memory_analysis()
  return {
    **figures(compiled.as_text(), *dumps, rounds=rounds, events=events),
    'temporary_bytes': memory.temp_size_in_bytes,
    'compile_seconds': round(time.perf_counter() - began, 1),
  }


def figures(
  text: str, sequence: str, metadata: str, *, rounds: Rounds, events: int
) -> dict[str, Any]:
  """What a step launches and moves, from what the compiler wrote.

  Args:
    text: of the optimized program.
    sequence, metadata: dumps of its thunks, as `gpu_launches.parse` has them.
    rounds: of the log.
    events: of a step.
  """
  from experiments import gpu_launches
  from experiments import program_text

  program = program_text.Program(text)
  open_loops = [
    i
    for i in program.instructions.values()
    if i.kind == 'while' and i.trips is None
  ]

  # A system whose update takes both sides in one loop has one loop forwards,
  # and one backwards.
  def trips(_: program_text.Instruction) -> float:
    return rounds.one_side if len(open_loops) > 2 else rounds.both_sides

  thunks = gpu_launches.parse(sequence, metadata)
  cost = gpu_launches.cost_of_step(thunks, program, trips)
  moved = program.moved_by_all(program.step(), trips)
  plain, modelled = cost.plain_microseconds, cost.microseconds
  return {
    'straight_launches': round(cost.kernels),
    'loop_launches': round(cost.in_loops + cost.rounds),
    'syncs': round(cost.syncs, 1),
    'graphs': round(cost.graphs),
    'share_in_graphs': round(cost.in_graphs / cost.launches, 3),
    'bytes': round(moved),
    'bytes_ms': round(moved / gpu_launches.BYTES_PER_US / 1e3, 3),
    'plain_ms': round(plain / 1e3, 3),
    'plain_events_per_s': round(events * 1e6 / plain),
    'graph_ms': round(modelled / 1e3, 3),
    'graph_events_per_s': round(events * 1e6 / modelled),
  }


def page(results: dict[str, Any]) -> list[str]:
  """The page of `results`, its lines."""
  from experiments import gpu_launches
  from experiments import pages

  columns = {
    'straight_launches': 'launches in straight line',
    'loop_launches': 'in loops',
    'syncs': 'host syncs',
    'graphs': 'CUDA graphs',
    'share_in_graphs': 'share within them',
    'bytes_ms': 'ms for its bytes',
    'plain_ms': 'ms, plain model',
    'plain_events_per_s': 'events/s, plain model',
    'graph_ms': 'ms, with graphs and bytes',
    'graph_events_per_s': 'events/s, with both',
  }
  rows = [
    [f'{name}, {part}', *(f'{row[key]:,}' for key in columns)]
    for name, system in results['systems'].items()
    for part, row in system.items()
  ]
  rounds, commits = results['rounds'], {}
  for name, commit in results['commits'].items():
    commits.setdefault(commit, []).append(name)
  return [
    '# A step on an H100, from its compiled program',
    '',
    '- commit: '
    + '; '.join(
      f'{commit} ({", ".join(names)})' for commit, names in commits.items()
    )
    + f'; jax {results["jax"]}',
    f'- events of a training batch: {BATCH_SIZE:,}; log of the size of Tmall',
    '- rounds of the ordered update, means over the batches of the simulated '
    f'log: {rounds["one_side"]:.1f} of a loop over one side, '
    f'{rounds["both_sides"]:.1f} of one over both',
    f'- plain model: {gpu_launches.LAUNCH_US:g} us for each kernel or copy, '
    f'{gpu_launches.SYNC_US:g} us whenever the host waits for a value',
    f'- model with graphs and bytes: {gpu_launches.IN_GRAPH_US:g} us for one '
    f'that a CUDA graph starts ({gpu_launches.SOURCE}), '
    f'{gpu_launches.LAUNCH_US:g} us for a graph or one outside, and the bytes '
    f'of each at {gpu_launches.BYTES_PER_US / 1e6:g} TB/s',
    '- nothing of this was timed: docs/devices.md has what was',
    '',
    *pages.table(['a step', *columns.values()], rows),
  ]


def main() -> None:
  """Compiles what the environment variable SYSTEMS names, or all systems."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
  os.environ.setdefault('JAX_ENABLE_COMPILATION_CACHE', 'false')
  chosen = os.environ.get('SYSTEMS', ' '.join(SYSTEMS)).split()
  if not shutil.which('ptxas'):
    raise SystemExit('no ptxas on the PATH; a CUDA toolkit has it')
  if not importlib.util.find_spec('jax_cuda13_plugin'):
    raise SystemExit(
      "no CUDA plugin of jax; pip install -e '.[gpu]', or `make gpu-compile`"
    )
  import jax

  from dynllm_jax.runs import jax_settings
  from dynllm_jax.runs import provenance
  from dynllm_jax.storage import atomic

  # As the command sets them where they are known to be sound.
  os.environ['XLA_FLAGS'] = jax_settings.CUDA_GRAPHS
  stored = RESULTS.with_suffix('.json')
  results = json.loads(stored.read_text()) if stored.exists() else {}
  rounds = simulated_rounds()
  systems, commits = results.get('systems', {}), results.get('commits', {})
  for name in chosen:
    systems[name] = compile_system(name, rounds)
    commits[name] = provenance.commit()
    for part, figures in systems[name].items():
      print(f'{name} {part}: {figures}', flush=True)
    results = {
      'commits': commits,
      'jax': jax.__version__,
      'rounds': rounds._asdict(),
      'systems': systems,
    }
    atomic.write_atomically(stored, json.dumps(results, indent=1) + '\n')
    atomic.write_atomically(
      RESULTS.with_suffix('.md'), '\n'.join(page(results)) + '\n'
    )


if __name__ == '__main__':
  main()
