"""What each barrier of kernels/barriers.py saves, to see when it can go.

    python -m experiments.barrier_savings    # a quiet machine, two minutes
    python -m experiments.barrier_savings --only=top_r,write --runs=15

Prints a line for each place that a barrier stands in:

    barrier=NAME with=MS without=MS ratio=R lax=MS

`with` and `without` are milliseconds of a run with the barrier and without,
`ratio` is without / with, and `lax` is a run in which JAX's own
`jax.lax.optimization_barrier` stands in its place. A barrier can go where the
ratio is 1, and is to be replaced where `lax` is as low as `with`. Figures are
medians of runs in turn, of processor time of all threads, upon which other
work on the machine bears less than on the clock on the wall (`--clock=wall`).
XLA's backends other than the CPU's need no barrier.
"""

from collections.abc import Callable
import functools
import statistics
import time
from typing import Any
from unittest import mock

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from configs import tmall
from dynllm_jax.engine import evaluate
from dynllm_jax.engine.ranking import Ranking
from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import pending_updates
from dynllm_jax.graph import training_graph
from dynllm_jax.graph import update_chains
from dynllm_jax.kernels import barriers
from dynllm_jax.kernels import graph_attention
from dynllm_jax.kernels import propagation
from dynllm_jax.kernels.time_codes import TimeCodes
from dynllm_jax.layers import distillation
from dynllm_jax.layers import memory_update
from dynllm_jax.layers import temporal_attention
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import PlannedBatch
from dynllm_jax.types import TrainGraph
from experiments import random_logs
from experiments import slices

_ONLY = flags.DEFINE_list('only', [], 'Names of barriers; default: all.')
_RUNS = flags.DEFINE_integer('runs', 9, 'Runs of each, one to warm up aside.')
_CLOCK = flags.DEFINE_enum('clock', 'cpu', ['cpu', 'wall'], 'What is counted.')

_CLOCKS = {'cpu': time.process_time, 'wall': time.perf_counter}
_BATCH, _DIM, _HEADS = 2048, 128, 2
_ROWS = 1_000_000  # of a table of memory

# A function to compile, its arguments and which of them are given away.
Case = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]


def _normal(*shape: int, seed: int = 0) -> Array:
  return jax.random.normal(jax.random.key(seed), shape)


def _and_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function's result, and the gradient of its squares by its first."""

  def run(first: Any, *others: Any) -> Any:
    result, pullback = jax.vjp(lambda first: function(first, *others), first)
    return result, pullback(result)

  return run


def attention() -> Case:
  """A layer of TGN, ten neighbors a node."""
  num_keys = 10
  layer = temporal_attention.TemporalLayer(_DIM, _HEADS)
  args = (
    _normal(_BATCH, _DIM),
    _normal(_DIM, seed=1),
    _normal(_BATCH, num_keys, _DIM, seed=2),
    TimeCodes(_normal(_BATCH, num_keys, seed=3), jnp.ones([_DIM // 2])),
    jnp.ones([_BATCH, num_keys], bool),
  )
  params = layer.init(jax.random.key(4), *args, True)

  def run(
    learned: Any, zero_code: Array, codes: TimeCodes, mask: Array
  ) -> Array:
    params, node, keys = learned
    found: Any = layer.apply(params, node, zero_code, keys, codes, mask, True)
    return found.product()

  node, zero_code, keys, codes, mask = args
  return _and_gradient(run), ((params, node, keys), zero_code, codes, mask), ()


def top_r() -> Case:
  """Four facets of a batch, distilled to 80 of 128 values."""
  run = functools.partial(distillation.distill, top_r=80, order='score')
  facets = _normal(_BATCH, 4, _DIM)
  return _and_gradient(run), (facets, _normal(4, _DIM, seed=1)), ()


def _graph() -> TrainGraph:
  log = random_logs.uniform(200_000, 10_000, 10_000)
  return jax.tree.map(jnp.asarray, training_graph.train_graph(log))


def sums() -> Case:
  """Three layers of LightGCN over 200,000 pairs of 20,000 nodes."""
  graph = _graph()
  nodes = jax.random.randint(jax.random.key(1), [2, _BATCH], 1, 10_000)

  def run(x: Array, graph: TrainGraph, nodes: Array) -> Array:
    total = x
    for _ in range(3):
      x = propagation.normalized_sums(graph, x)
      total += x
    return total[nodes]

  x = _normal(len(graph.degrees), _DIM)
  return _and_gradient(run), (x, graph, nodes), ()


def edges() -> Case:
  """Two layers of GAT over the same graph."""
  graph = _graph()
  size = len(graph.degrees)

  def run(learned: tuple[Array, ...], graph: TrainGraph) -> Array:
    weights, x = learned
    for weight in weights:
      value = (x @ weight).reshape(size, _HEADS, -1)
      query, key = value.mean(-1), value.max(-1)
      heads = graph_attention.attend(graph, query, key, value)
      x = jax.nn.elu(heads.reshape(size, -1))
    return x

  weights = _normal(2, _DIM, _DIM, seed=1) * _DIM**-0.5
  return _and_gradient(run), ((weights, _normal(size, _DIM)), graph), ()


def write() -> Case:
  """Eight batches that read rows of a large memory and write them back."""
  width = 32
  memory = memory_lib.empty(_ROWS - 1, width, _BATCH)
  rng = np.random.default_rng(0)
  nodes = jnp.asarray(
    [rng.choice(_ROWS - 1, _BATCH, False) + 1 for _ in range(8)], jnp.int32
  )

  def run(memory: Any) -> Any:
    def step(memory: Any, nodes: Array) -> tuple[Any, Array]:
      rows = memory_lib.read(memory, nodes, jnp.ones([width]))
      memory = memory_lib.write(memory, nodes, jnp.cos(rows), nodes)
      return memory, rows.sum()

    return jax.lax.scan(step, memory, nodes)

  return run, (memory,), (0,)


def replay() -> Case:
  """Eight batches ranked by transitions, then written to their large table."""
  config = tmall.get_config('transitions')
  log = random_logs.uniform(64, 1_000, 5_000)
  item_text, facets = random_logs.texts(log, 0)
  trainer, inputs, _, state = slices.build(config, log, item_text, facets)
  bound = BoundSystem(trainer.system, state.params, inputs)
  plan = evaluate.split_plans(trainer.system, log, 256)['train']
  ranking = Ranking(
    candidates=jnp.ones([log.num_items + 1], bool),
    block_size=log.num_items,
  )
  before = evaluate.ReplayState(
    state.memory,
    pending_updates.empty_pending_for(bound, state.memory, plan.batch_size),
  )

  def run(
    before: evaluate.ReplayState, bound: BoundSystem, batches: PlannedBatch
  ) -> Any:
    return evaluate.replay_chunk(
      bound,
      ranking,
      before,
      batches,
      jnp.ones([len(batches)], bool),
      batch_size=plan.batch_size,
    )

  batches = jax.tree.map(lambda column: column[:8], plan.batches)
  return run, (before, bound, batches), (0,)


def chains() -> Case:
  """The ordered update of a batch, in which popular nodes have many events."""
  share = np.random.default_rng(0).random(_BATCH)
  nodes = jnp.asarray(1 + 1000 * share**3, jnp.int32)
  once = jnp.arange(_BATCH, dtype=jnp.int32)
  chain = update_chains.make_chains(
    nodes, once, jnp.ones([_BATCH], bool), jnp.full([_BATCH], -1, jnp.int32)
  )
  cell = memory_update.NORMALIZED_GRU
  params = cell.init(jax.random.key(1), _DIM, _DIM)

  def run(
    learned: tuple[Any, Array, Array], chain: update_chains.Chains
  ) -> Array:
    (states,) = update_chains.run_chains(
      (cell.recurrence,), (update_chains.Side(*learned, chain),)
    )
    return states

  learned = params, _normal(_BATCH, _DIM), _normal(_BATCH, 3 * _DIM, seed=2)
  return _and_gradient(run), (learned, chain), ()


CASES = (attention, top_r, sums, edges, write, replay, chains)


def _no_fusion_barrier(
  compute: Callable[..., Any], *args: Any, condition: Array | None = None
) -> Any:
  del condition
  return compute(*args)


def _lax_fusion_barrier(
  compute: Callable[..., Any], *args: Any, condition: Array | None = None
) -> Any:
  del condition
  args = jax.lax.optimization_barrier(args)
  return jax.lax.optimization_barrier(compute(*args))


def _no_after(flags: Array, values: Array) -> Array:
  del values
  return flags


def _lax_after(flags: Array, values: Array) -> Array:
  return jax.lax.optimization_barrier((flags, values))[0]


# What stands in the place of (`fusion_barrier`, `after`).
KINDS = {
  'with': (barriers.fusion_barrier, barriers.after),
  'without': (_no_fusion_barrier, _no_after),
  'lax': (_lax_fusion_barrier, _lax_after),
}


def compile_case(case: Case, kind: str) -> Callable[..., Any]:
  """A case's program with one of `KINDS` in place of the barriers."""
  function, args, given_away = case
  fusion_barrier, after = KINDS[kind]
  jax.clear_caches()  # what was traced with other barriers
  with (
    mock.patch.object(barriers, 'fusion_barrier', fusion_barrier),
    mock.patch.object(barriers, 'after', after),
  ):
    # A function of its own: of one that it knows JAX has the trace.
    program = jax.jit(lambda *args: function(*args), donate_argnums=given_away)
    return program.lower(*args).compile()


def measure(
  case: Case, runs: int, clock: Callable[[], float]
) -> dict[str, Any]:
  """Milliseconds of a run by kind, the medians of runs in turn."""
  programs = {kind: compile_case(case, kind) for kind in KINDS}
  spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
  for _ in range(1 + runs):
    for kind, program in programs.items():
      args = jax.block_until_ready(jax.tree.map(jnp.copy, case[1]))
      began = clock()
      jax.block_until_ready(program(*args))
      spent[kind].append(1000 * (clock() - began))
  return {kind: statistics.median(times[1:]) for kind, times in spent.items()}


def main(argv: list[str]) -> None:
  """Measures, prints."""
  del argv
  for case in CASES:
    if _ONLY.value and case.__name__ not in _ONLY.value:
      continue
    ms = measure(case(), _RUNS.value, _CLOCKS[_CLOCK.value])
    print(
      f'barrier={case.__name__} with={ms["with"]:.1f} '
      f'without={ms["without"]:.1f} '
      f'ratio={ms["without"] / ms["with"]:.2f} lax={ms["lax"]:.1f}',
      flush=True,
    )


if __name__ == '__main__':
  app.run(main)
