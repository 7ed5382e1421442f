r"""How fast a recommender answers and takes in events.

    python -m experiments.live                     # a run of Tmall's size
    python -m experiments.live --workdir=runs/shop # a run of your own

Prints `aim=<name> value=<figure> wanted=<figure> met=<yes|no|not run>` for
each aim and writes `experiments/results/live.json` and `.md`; with `--aims`,
what is measured joins what is there of the same commit and machine. Without a
run folder one is made, of a system that was not trained: what it costs to
answer does not depend on what was learned. Events are kept in a journal in a
copy of the run folder, and an observation counts from the call to the commit on
disk. Times are in milliseconds unless the name says seconds. The names that
begin with `http` are of a server and 32 clients on this machine
(experiments/live_http.py).
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import numpy as np

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax.engine import ranking
from dynllm_jax.graph import inputs as inputs_lib
from dynllm_jax.live import live_state
from dynllm_jax.live import restore
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.types import BoundSystem
from experiments import aims
from experiments import exit_status
from experiments import live_http
from experiments import random_logs

_WORKDIR = flags.DEFINE_string('workdir', '', 'A run folder; it is copied.')
_SYSTEM = flags.DEFINE_string(
  'system', 'dynllm+text', 'The system of the run that is made without one.'
)
_CALLS = flags.DEFINE_integer('calls', 1_000, 'Calls that are timed.')
_MILLION = flags.DEFINE_integer(
  'items', 1_000_000, 'Items of the large catalogue.'
)
_AIMS = flags.DEFINE_list(
  'aims', [], 'Beginnings of the names of aims; default: all.'
)
_SECONDS = flags.DEFINE_float('seconds', 300.0, 'Of the clients over HTTP.')
_OUT = flags.DEFINE_string(
  'out',
  str(pathlib.Path(__file__).parent / 'results' / 'live'),
  'Where .json and .md go.',
)

AIMS = {
  'recommend_p50': aims.Aim(5.0, at_most=True),
  'recommend_p99': aims.Aim(20.0, at_most=True),
  'observe_p50': aims.Aim(3.0, at_most=True),
  'observe_p99': aims.Aim(10.0, at_most=True),
  'events_per_s': aims.Aim(3_000.0),
  'all_users_by_evaluation': aims.Aim(1.0),
  'warm_start_s': aims.Aim(10.0, at_most=True),
  'http_warm_start_s': aims.Aim(10.0, at_most=True),
  'http_errors': aims.Aim(0.0, at_most=True),
  'http_compiled': aims.Aim(0.0, at_most=True),
  'http_memory_growth': aims.Aim(1.05, at_most=True),
  'http_requests_per_s': aims.Aim(100.0),
  'million_items_p50': aims.Aim(50.0, at_most=True),
}
_BATCH = 2048  # events of an observation where many come at once


def timed(call: Callable[[int], object]) -> np.ndarray:
  """Milliseconds of each of `--calls` calls, after as many as warm up."""
  for number in range(20):
    call(number)
  took = np.zeros(_CALLS.value)
  for number in range(len(took)):
    start = time.perf_counter()
    call(number)
    took[number] = 1e3 * (time.perf_counter() - start)
  return took


def percentile(took: np.ndarray, which: float) -> aims.Found:
  """A percentile, beside the others of the same calls."""
  names = {f'p{q}': float(np.percentile(took, q)) for q in (50, 90, 99)}
  return {'value': float(np.percentile(took, which)), **names}


def make_run(folder: pathlib.Path) -> str:
  """A run folder of Tmall's size (SPEC 2.3), before training."""
  config = config_lib.default(_SYSTEM.value)
  config.data.source, config.data.size = 'simulated', 'tmall'
  config.data.dir = str(folder / 'data')
  config.eval.compare = ()
  run = prepared.prepare(config)
  state = prepared.initial_state(run)
  workdir = RunFolder(str(folder / 'run'))
  workdir.write_json('config.json', config.to_dict())
  status = Status(run.identity, '', 0, epochs=1, best_epoch=1)
  with Checkpoints(workdir.path) as checkpoints:
    for kind in ('best', 'latest'):
      checkpoints.save(kind, 1, state, status.to_json())
  return str(workdir.path)


class Stream:
  """Events that never end, of users and items that are there."""

  def __init__(self, shop: Recommender) -> None:
    self._users, self._items = shop.users, shop.items
    self._rng = np.random.default_rng(0)
    self._time = shop.newest_time

  def take(self, count: int) -> list[tuple[str, str, int]]:
    """The next events, a second apart."""
    users = self._rng.integers(0, len(self._users), count)
    items = self._rng.integers(0, len(self._items), count)
    self._time += count
    times = range(self._time - count + 1, self._time + 1)
    return [
      (self._users[user], self._items[item], time)
      for user, item, time in zip(users, items, times)
    ]


def evaluation_speed(workdir: str) -> float:
  """Events a second that an evaluation ranks, compiling left out."""
  run = restore.open_run(workdir).prepared
  ranked = prepared.rank_splits(
    run, prepared.initial_state(run), ('validation',), sample=8192
  )
  ranks, seconds = ranked['validation']
  return len(ranks) / seconds


def answers(workdir: str) -> dict[str, aims.Found]:
  """Questions and events one at a time, events in batches, all users."""
  evaluated = evaluation_speed(workdir)
  shop = Recommender.restore(workdir)
  stream, users = Stream(shop), shop.users
  recommend = timed(lambda n: shop.recommend(users[n % len(users)]))
  observe = timed(lambda n: shop.observe(stream.take(1)))

  shop.observe(stream.take(_BATCH))
  start = time.perf_counter()
  for _ in range(8):
    shop.observe(stream.take(_BATCH))
  events = 8 * _BATCH / (time.perf_counter() - start)

  shop.recommend(users[:1024])
  start = time.perf_counter()
  shop.recommend(users)
  everybody = len(users) / (time.perf_counter() - start)
  shop.snapshot()
  shop.close()
  return {
    'recommend_p50': percentile(recommend, 50),
    'recommend_p99': percentile(recommend, 99),
    'observe_p50': percentile(observe, 50),
    'observe_p99': percentile(observe, 99),
    'events_per_s': {'value': events, 'batch': _BATCH},
    'all_users_by_evaluation': {
      'value': everybody / evaluated,
      'users_per_s': everybody,
      'evaluation_per_s': evaluated,
    },
  }


def warm_start(workdir: str) -> aims.Found:
  """Seconds from the start of Python to the first answer, the second time.

  A snapshot is there, and programs are compiled; a server has both when it is
  started again.
  """
  code = (
    'import sys; from dynllm_jax import Recommender\n'
    'shop = Recommender.restore(sys.argv[1])\n'
    'shop.recommend(shop.users[0])'
  )
  stored = '\nshop.start_writing()\nassert shop.snapshot()'
  seconds = []
  for after in (stored, ''):
    start = time.perf_counter()
    subprocess.run(
      [sys.executable, '-c', code + after, workdir],
      check=True,
      capture_output=True,
    )
    seconds.append(time.perf_counter() - start)
  return {'value': seconds[1], 'first': seconds[0]}


def http_start(workdir: str) -> aims.Found:
  """Seconds from the command to the first answer, the second time."""
  with tempfile.TemporaryDirectory() as folder:
    with live_http.serving(workdir, folder) as (_, _, cold, cold_warm):
      pass
    with live_http.serving(workdir, folder) as (_, _, ready, warm):
      pass
  return {
    'value': ready,
    'all_compiled': warm,
    'first_ever': cold,
    'first_ever_all_compiled': cold_warm,
  }


def http_load(workdir: str) -> dict[str, aims.Found]:
  """A server under the load of 32 clients."""
  load = live_http.measure(workdir, 32, _SECONDS.value)
  reads, writes = (
    percentile(1e3 * took, 50) for took in (load.reads, load.writes)
  )
  first, last = load.memory[1], load.memory[-1]
  count = len(load.reads) + len(load.writes)
  return {
    'http_errors': {'value': float(len(load.errors)), 'requests': count},
    'http_compiled': {'value': float(load.compiled)},
    'http_memory_growth': {
      'value': last / first,
      'first_mib': first,
      'last_mib': last,
    },
    'http_requests_per_s': {
      'value': count / load.seconds,
      'seconds': load.seconds,
      **{f'recommend_{name}': reads[name] for name in ('p50', 'p99')},
      **{f'observe_{name}': writes[name] for name in ('p50', 'p99')},
    },
  }


def million_items() -> aims.Found:
  """Questions against a large catalogue, of the system without text term."""
  config = config_lib.default(_SYSTEM.value.partition('+')[0])
  system = config_lib.system_module(config.model.name).build(config.model)
  log = random_logs.uniform(1_000_000, 100_000, _MILLION.value)
  text, bank = random_logs.texts(log, 64)
  graphs = (
    GrowingGraph(log.users, log.items, log.times, log.num_users),
    GrowingGraph(log.items, log.users, log.times, log.num_items),
  )
  built = inputs_lib.build_inputs(log, text, bank, padding=1)
  inputs = live_state.live_inputs(
    jax.tree.map(jax.numpy.asarray, built), *graphs
  )
  params, memory = jax.jit(system.init, static_argnums=2)(
    jax.random.key(0), inputs, 1
  )
  state = live_state.LiveState.begun(
    BoundSystem(system, params, inputs),
    memory,
    graphs,
    newest=int(log.times[-1]),
    ranking=ranking.Ranking(np.ones(log.num_items + 1, bool), 100_000),
  )
  everything = np.ones([1, log.num_items], bool)

  def ask(number: int) -> None:
    user = np.array([1 + number % log.num_users])
    jax.block_until_ready(state.top(user, everything, 10))

  return {**percentile(timed(ask), 50), 'items': log.num_items}


def _kept(about: dict[str, str]) -> dict[str, aims.Found]:
  """What the page has of the same commit, machine and run."""
  path = pathlib.Path(_OUT.value + '.json')
  if not path.exists():
    return {}
  page = json.loads(path.read_text())
  here = {
    'commit': provenance.commit(),
    'machine': provenance.machine(),
    **about,
  }
  here = json.loads(json.dumps(here))
  if {name: page.get(name) for name in here} != here:
    return {}
  own = ('wanted', 'at_most', 'met')
  return {
    name: {field: value for field, value in found.items() if field not in own}
    for name, found in page['aims'].items()
  }


def _measured(wanted: set[str]) -> Iterator[dict[str, aims.Found]]:
  """Figures, some at a time, aims of `wanted` among them."""
  starts = {'warm_start_s', 'http_warm_start_s'}
  over_http = {name for name in wanted if name.startswith('http')} - starts
  if 'million_items_p50' in wanted:
    yield {'million_items_p50': million_items()}
  wanted = wanted - {'million_items_p50'}
  if not wanted:
    return
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    workdir = str(folder / 'copy')
    made = _WORKDIR.value or make_run(folder)
    shutil.copytree(made, workdir, ignore=shutil.ignore_patterns('live'))
    if wanted - starts - over_http:
      yield answers(workdir)
    if 'warm_start_s' in wanted:
      yield {'warm_start_s': warm_start(workdir)}
    if 'http_warm_start_s' in wanted:
      yield {'http_warm_start_s': http_start(workdir)}
    if over_http:
      yield http_load(workdir)


def _work() -> None:
  for asked in _AIMS.value:
    if not any(name.startswith(asked) for name in AIMS):
      raise checks.not_allowed(
        '--aims', asked, f'beginnings of {", ".join(AIMS)}'
      )
  wanted = {
    name
    for name in AIMS
    if not _AIMS.value or any(map(name.startswith, _AIMS.value))
  }
  about = {
    'run': _WORKDIR.value or f"{_SYSTEM.value}, Tmall's size, not trained",
    'calls': str(_CALLS.value),
  }
  for measured in _measured(wanted):
    found = {name: measured[name] for name in measured if name in wanted}
    for name, one in found.items():
      print(aims.line(name, AIMS[name], one), flush=True)
    aims.write(
      _OUT.value,
      'Live: answers and events',
      about=about,
      aims=AIMS,
      results=_kept(about) | found,
      more=['Made by `python -m experiments.live`; times in milliseconds.'],
    )


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  sys.exit(exit_status.exit_status(_work))


if __name__ == '__main__':
  app.run(main)
