r"""Speed beside the peers and beside what the machine can do.

    pip install -e '.[peers]'        # here, or in an environment of its own
    python -m experiments.throughput --peer_python=OTHER_VENV/bin/python \
        --recbole_python=THIRD_VENV/bin/python

Prints `aim=<name> value=<figure> wanted=<figure> met=<yes|no|not run>` for
each aim and writes `experiments/results/throughput.json` and `.md`. Two
systems that are compared train on slices of a log in turn, on the same cores,
so that other work on the machine hurts both. The first slice of each warms up
and is not counted. Figures are medians; a ratio is the median of the ratios of
the slices.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import tmall
from dynllm_jax import progress
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking
from dynllm_jax.runs import prepared
from dynllm_jax.types import BoundSystem
from experiments import aims
from experiments import exit_status
from experiments import machine_use
from experiments import pages
from experiments import random_logs
from experiments import slices as slices_lib
from experiments import start_up
from experiments.timed_process import TimedProcess

_PEER = flags.DEFINE_string(
  'peer_python', sys.executable, 'Python that has torch_geometric.'
)
_RECBOLE = flags.DEFINE_string(
  'recbole_python',
  sys.executable,
  'Python that has RecBole 1.2, which needs numpy 1.',
)
_SLICES = flags.DEFINE_integer(
  'slices', 5, 'How many slices are counted, after one to warm up.'
)
_EVENTS = flags.DEFINE_integer('slice_events', 16_384, 'Events of a slice.')
_SIZE = flags.DEFINE_enum(
  'size', 'tmall', ['tmall', 'demo'], 'Size of the simulated log.'
)
_RETAIL = flags.DEFINE_string(
  'retail',
  '',
  'EVENTS[,ITEMS] of online_retail; by default a log is drawn at random in '
  'its shape.',
)
_SIDE = flags.DEFINE_integer(
  'gemm_side', 4096, 'Side of the matrices whose product finds the peak.'
)
_AIMS = flags.DEFINE_list(
  'aims', [], 'Beginnings of the names of aims; default: all.'
)
_OUT = flags.DEFINE_string(
  'out',
  str(pathlib.Path(__file__).parent / 'results' / 'throughput'),
  'Where .json and .md go.',
)

# The authors' DynLLM (PyTorch, B 2048, L 2, n 3), measured on another machine
# with two cores and AVX-512: training events a second, and milliseconds for
# ranking 1,000 events. They are aims, not figures of this run.
_AUTHORS_TRAIN, _AUTHORS_RANK_MS = 2_172, 3_160
_AUTHORS = "the authors' code on another machine"
_NEIGHBORS = 10  # of tgn, unless an aim names another number

AIMS = {
  'tgn_b2048_n10': aims.Aim(3.0),
  'tgn_b200_n10': aims.Aim(4.0),
  'tgn_b200_n50': aims.Aim(8.0),
  'lightgcn': aims.Aim(1.0),
  'ngcf': aims.Aim(1.0),
  'dynllm_384': aims.Aim(5.0),
  'dynllm_1536': aims.Aim(5.0),
  'dynllm_ranking': aims.Aim(60.0),
  'mfu_tgn': aims.Aim(0.5),
  'mfu_dynllm': aims.Aim(0.5),
  'retail_tgn': aims.Aim(0.5),
  'retail_dynllm': aims.Aim(0.5),
  'start_up_s': aims.Aim(10.0, at_most=True),
}


class Peer(NamedTuple):
  """A package that trains a system like one of ours.

  Attributes:
    python: the Python that has the package.
    package: its name.
    file: the script of this folder that trains it.
    more: last arguments of the script.
  """

  python: str
  package: str
  file: str
  more: tuple[str, ...] = ()

  def is_there(self) -> bool:
    """Whether its Python can import the package."""
    line = [self.python, '-c', f'import {self.package}']
    return not subprocess.run(line, check=False, capture_output=True).returncode


def config_of(system: str, **fields: Any) -> ml_collections.ConfigDict:
  """configs/tmall.py with some fields set otherwise.

  Args:
    system: its name.
    **fields: by name, with `__` for a dot.
  """
  config = tmall.get_config(system)
  config.data.size = _SIZE.value
  config.eval.compare = ()
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return config


def ours(
  system: str, **fields: Any
) -> tuple[slices_lib.Slices, prepared.PreparedRun]:
  """A system of ours in training on the simulated log, and what it is of.

  Args:
    system: its name.
    **fields: as of `config_of`.
  """
  return slices_lib.of_config(config_of(system, **fields), _EVENTS.value)


def rate(slices: slices_lib.Slices) -> float:
  """Trains on the next slice and returns its events a second."""
  events, seconds = slices.step()
  return events / seconds


def beside_tgn(batch: int, near: int) -> aims.Found:
  """Our TGN beside torch_geometric's.

  Args:
    batch: events of a batch.
    near: neighbors of a node.
  """
  slices, run = ours('tgn', train__batch_size=batch, model__num_neighbors=near)
  return beside_peer(
    Peer(_PEER.value, 'torch_geometric', 'peer_tgn.py', (peer_device(),)),
    slices,
    run,
    arguments=[batch, near, run.config.model.dim],
  )


def peer_device() -> str:
  """The device that JAX computes on, as torch calls it."""
  return 'cuda' if jax.devices()[0].platform == 'gpu' else 'cpu'


def beside_recbole(system: str, model: str) -> aims.Found:
  """A static graph system of ours beside RecBole's.

  Args:
    system: its name.
    model: its name in RecBole.
  """
  batch, layers = 2048, 2
  slices, run = ours(system, train__batch_size=batch, model__num_layers=layers)
  return beside_peer(
    Peer(_RECBOLE.value, 'recbole', 'peer_recbole.py'),
    slices,
    run,
    arguments=[model, batch, run.config.model.dim, layers],
  )


def beside_peer(
  peer: Peer,
  slices: slices_lib.Slices,
  run: prepared.PreparedRun,
  arguments: list[Any],
) -> aims.Found:
  """Trains a system of ours and a peer's on the same events, in turn.

  Args:
    peer: the package and its script.
    slices: of our system.
    run: whose training events both see.
    arguments: of the script, between the log and the events of a slice.

  Returns:
    `value`, how many times as fast ours is, and both rates; a `value` of None
    where the package is not there.
  """
  if not peer.is_there():
    return {'value': None, 'why': f'{peer.python} has no {peer.package}'}
  log, batch = run.log, run.config.train.batch_size
  events = max(batch, min(_EVENTS.value, log.train_end) // batch * batch)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'log.npz')
    np.savez(
      path,
      **{
        name: getattr(log, name)[: log.train_end]
        for name in ('users', 'items', 'times')
      },
    )
    script = pathlib.Path(__file__).parent / peer.file
    arguments = [*arguments, events, *peer.more]
    line = [peer.python, str(script), path, *map(str, arguments)]
    process = TimedProcess(line)

    pairs = []
    for _ in range(_SLICES.value + 1):
      mine = rate(slices)
      pairs.append((mine, events / float(process.step())))
    process.close()

  mine, theirs = zip(*pairs[1:])
  return {
    'value': statistics.median(a / b for a, b in pairs[1:]),
    'ours_events_per_s': statistics.median(mine),
    'peer_events_per_s': statistics.median(theirs),
    'peer': process.about,
    'compile_s': slices.compile_s,
  }


def dynllm_training(llm_dim: int) -> aims.Found:
  """Trains DynLLM in the paper's setting, beside the authors' code.

  Args:
    llm_dim: width of a text's embedding.
  """
  slices, _ = ours('dynllm', facets__encoder__dim=llm_dim)
  rates = [rate(slices) for _ in range(_SLICES.value + 1)][1:]
  return {
    'value': statistics.median(rates) / _AUTHORS_TRAIN,
    'ours_events_per_s': statistics.median(rates),
    'peer': f'{_AUTHORS}, {_AUTHORS_TRAIN:,}',
    'compile_s': slices.compile_s,
  }


def dynllm_ranking() -> aims.Found:
  """Ranks the whole catalogue with DynLLM, beside the authors' code."""
  slices, run = ours('dynllm')
  slices.step()
  state = slices.state
  plan = run.rank_plans['validation']
  among_all = ranking.make_ranking(run.config, run.log).replace(
    candidates=jnp.asarray(ranking.candidate_mask(run.log, 'all'))
  )
  bound = BoundSystem(run.system, state.params, run.inputs)
  memory = evaluate.memory_for_replay(bound, state.memory, state.pending)

  # A few batches of the split are enough, and soon done.
  length = max(1, _EVENTS.value // plan.batch_size)
  plan = plan._replace(batches=plan.batches[:length])

  seconds = []
  for _ in range(_SLICES.value + 1):
    began = time.perf_counter()
    _, ranks = evaluate.replay(bound, memory, plan, among_all)
    seconds.append(time.perf_counter() - began)
  per_thousand = 1e6 * statistics.median(seconds[1:]) / len(ranks)
  return {
    'value': _AUTHORS_RANK_MS / per_thousand,
    'ours_ms_per_1000_events': per_thousand,
    'peer': f'{_AUTHORS}, {_AUTHORS_RANK_MS:,} ms per 1,000 events',
    'catalogue': run.log.num_items,
    'events': len(ranks),
  }


def use_of_machine(system: str) -> aims.Found:
  """The share of the GEMM peak that a system's training reaches."""
  fields = {'model__num_neighbors': _NEIGHBORS} if system == 'tgn' else {}
  slices, run = ours(system, **fields)
  return machine_use.measure(slices, run, _SLICES.value, _SIDE.value)


def retail(system: str) -> aims.Found:
  """Trains on a log where a node has hundreds of events in a batch.

  The simulated log, where it has few, is trained on in turn, by the same system
  with the same settings and widths.

  Args:
    system: its name.

  Returns:
    `value`, the rate on the crowded log by that on the other, and so on.
  """
  plain, _ = ours(system)
  if _RETAIL.value:
    config = config_of(system)
    config.data.source = 'online_retail'
    config.data.events, _, config.data.items = _RETAIL.value.partition(',')
    crowded, run = slices_lib.of_config(config, _EVENTS.value)
    log = run.log.source
  else:
    drawn = random_logs.retail(0.1 if _SIZE.value == 'demo' else 1.0)
    config = config_of(system)
    item_text, bank = random_logs.texts(drawn, config.facets.encoder.dim)
    crowded = slices_lib.Slices(
      slices_lib.build(config, drawn, item_text, bank), _EVENTS.value
    )
    log = 'drawn at random in its shape'

  pairs = [(rate(crowded), rate(plain)) for _ in range(_SLICES.value + 1)][1:]
  busiest, rounds = slices_lib.crowding(crowded)
  return {
    'value': statistics.median(a / b for a, b in pairs),
    'retail_events_per_s': statistics.median(a for a, _ in pairs),
    'tmall_events_per_s': statistics.median(b for _, b in pairs),
    'log': log,
    'events_of_a_node_in_a_batch': busiest,
    'rounds_of_a_batch': rounds,
  }


MEASURES = {
  'tgn_b2048_n10': lambda: beside_tgn(2048, _NEIGHBORS),
  'tgn_b200_n10': lambda: beside_tgn(200, 10),
  'tgn_b200_n50': lambda: beside_tgn(200, 50),
  'lightgcn': lambda: beside_recbole('lightgcn', 'LightGCN'),
  'ngcf': lambda: beside_recbole('ngcf', 'NGCF'),
  'dynllm_384': lambda: dynllm_training(384),
  'dynllm_1536': lambda: dynllm_training(1536),
  'dynllm_ranking': dynllm_ranking,
  'mfu_tgn': lambda: use_of_machine('tgn'),
  'mfu_dynllm': lambda: use_of_machine('dynllm'),
  'retail_tgn': lambda: retail('tgn'),
  'retail_dynllm': lambda: retail('dynllm'),
  'start_up_s': lambda: start_up.measure(_SIZE.value),
}


def scaling_results() -> dict[str, aims.Found]:
  """What experiments/scaling.py found last, with the commit of its run."""
  path = pathlib.Path(__file__).parent / 'results' / 'scaling.json'
  stored = json.loads(path.read_text()) if path.exists() else {'aims': {}}
  return {
    name: {**stored['aims'][name], 'commit': stored['commit']}
    if name in stored['aims']
    else {'value': None, 'why': 'run experiments.scaling'}
    for name in aims.SCALING
  }


def main(argv: list[str]) -> int:
  """Measures the aims that were asked for and writes the page."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if a flag names no aim, or a run of the command fails.
  """
  aims.check_asked(
    'aims',
    _AIMS.value,
    list(MEASURES),
    out=_OUT.value,
    default_out=flags.FLAGS['out'].default,
  )
  results, began = {}, time.perf_counter()
  for name, measure in MEASURES.items():
    asked = not _AIMS.value or any(map(name.startswith, _AIMS.value))
    results[name] = measure() if asked else {'value': None}
    jax.clear_caches()
    progress.say(aims.line(name, AIMS[name], results[name]))
    if asked:
      progress.say(f'  {time.perf_counter() - began:.0f} s so far')

  kept = scaling_results()
  for name, found in kept.items():
    progress.say(aims.line(name, aims.SCALING[name], found))
  aims.write(
    _OUT.value,
    'Throughput',
    about={
      'log': f'simulated, size {_SIZE.value}',
      'medians': f'of {_SLICES.value} slices of {_EVENTS.value:,} events',
    },
    aims=AIMS | aims.SCALING,
    results=results | kept,
    more=_page(results),
  )


def _page(results: dict[str, aims.Found]) -> list[str]:
  """Phases and products of the systems whose use of the machine is known."""
  lines = []
  for name, found in results.items():
    if 'phases_ms' not in found:
      continue

    whole = found['phases_ms']['step']
    lines += [
      f'## Where a step of {name.removeprefix("mfu_")} goes',
      '',
      *pages.table(
        ['phase', 'ms', 'share'],
        [
          [phase, f'{ms:.1f}', f'{ms / whole:.0%}']
          for phase, ms in found['phases_ms'].items()
        ],
      ),
      '',
      'A phase is the difference of the times of two programs, which are '
      'timed in turn.',
      '',
      *pages.table(
        ['product', 'GFLOP/s'],
        [
          [shape, f'{value:.0f}']
          for shape, value in found['gemm_gflop_per_s_at'].items()
        ],
      ),
      '',
    ]
  return lines


if __name__ == '__main__':
  app.run(main)
