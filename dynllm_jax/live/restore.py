"""From a run folder to a live state (SPEC 10.1).

The run folder names everything: `config.json` has the configuration, the best
checkpoint the parameters, the memory after training, and the fingerprint of the
prepared log. That log, the facets and the items' texts are found by their
hashes in `config.data.dir`; the files that the log was made of are not needed.
"""

import pathlib
from typing import Any
from typing import NamedTuple

import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import ranking
from dynllm_jax.facets import facet_bank
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.live_state import live_inputs
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.live.live_state import Saved
from dynllm_jax.live.withheld_facets import WithheldFacets
from dynllm_jax.progress import Progress
from dynllm_jax.runs import identity
from dynllm_jax.runs import prepared
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import SystemMemory

SPLITS = ('train', 'validation', 'log')  # how far a log may be replayed


class Opened(NamedTuple):
  """A run folder and its data, read; its parameters are still to be.

  Attributes:
    workdir: the folder.
    config: of the run, for one device.
    stored: names the best checkpoint, by what its record says of it.
    prepared: the run, ready to rank.
  """

  workdir: str
  config: ml_collections.ConfigDict
  stored: str
  prepared: prepared.PreparedRun

  @property
  def facets(self) -> pathlib.Path:
    """Where the texts of the facets are."""
    return pathlib.Path(self.prepared.facets['folder'])


def run_config(workdir: str, data_dir: str | None = None) -> Any:
  """The configuration of a run folder.

  Args:
    workdir: the folder of a run with `--mode=train`.
    data_dir: where prepared data are now; None: where they were.

  Returns:
    A locked config.

  Raises:
    InputError: if it is no such folder.
  """
  fields = RunFolder(workdir).read_json('config.json')
  if fields is None:
    raise InputError(
      f'--workdir: {workdir!r} has no config.json; allowed: the folder of a '
      'run with --mode=train'
    )
  config = config_lib.restored(fields)
  if data_dir is not None:
    config.data.dir = data_dir
  return config


def open_run(workdir: str, data_dir: str | None = None) -> Opened:
  """Reads a run folder and the data that it names.

  Args:
    workdir: the folder of a run with `--mode=train`.
    data_dir: where prepared data are now; None: where they were.

  Raises:
    InputError: for whatever is wrong with the folder, or gone.
  """
  config = run_config(workdir, data_dir)
  # Answers are of one device, and no other system is to be ranked.
  config.mesh.update({'data': 1, 'nodes': 1})
  config.eval.compare = ()
  config.facets.device_gib = float('inf')

  folder = RunFolder(workdir)
  if not (folder.path / 'checkpoints').is_dir():
    raise InputError(
      f'--workdir: {workdir!r} has no checkpoint; allowed: the folder of a run '
      'with --mode=train'
    )
  with Checkpoints(folder.path) as checkpoints:
    status = Status.from_json(checkpoints.status('best'))
    stored = checkpoints.name('best')
  log = loading.load_prepared(config.data, status.identity['data_fingerprint'])
  _check_texts(config, log)
  run = prepared.prepare(config, log)
  current = identity.without_newer(status.identity, run.identity)
  identity.check(status.identity, current, workdir, resume=False)
  return Opened(workdir, config, stored, run)


def from_checkpoint(opened: Opened, until: str = 'log') -> LiveState:
  """The best epoch of a run, after a replay of what came after training.

  Args:
    opened: the run.
    until: of `SPLITS`: the end of the split up to which events are known.

  Raises:
    InputError: if the checkpoint cannot be read.
  """
  run, config = opened.prepared, opened.config
  log = run.log
  with Checkpoints(RunFolder(opened.workdir).path) as checkpoints:
    trained = checkpoints.restore('best', prepared.state_shapes(run))

  bound = BoundSystem(run.system, trained.params, run.inputs)
  memory = evaluate.memory_for_replay(bound, trained.memory, trained.pending)
  end = log.train_end
  if until != 'train':
    memory, end = _replay(run, bound, memory, 'validation'), log.validation_end
  if until == 'log':
    memory, end = _replay(run, bound, memory, 'test'), log.num_events

  users, items, times = (
    column[:end] for column in (log.users, log.items, log.times)
  )
  graphs = (
    GrowingGraph(users, items, times, log.num_users),
    GrowingGraph(items, users, times, log.num_items),
  )
  state = LiveState.begun(
    bound.replace(inputs=live_inputs(run.inputs, *graphs)),
    memory,
    graphs,
    newest=int(times[-1]),
    ranking=ranking.make_ranking(config, log),
  )
  if until == 'log':
    state.make_room()
  elif run.system.reads_facets:
    state.withhold(WithheldFacets(log, config.facets.window_days, end))
  return state


def from_snapshot(opened: Opened, saved: Saved) -> LiveState:
  """The state that was saved of a run.

  Args:
    opened: the run.
    saved: of a state of it, which knew the whole log.

  Raises:
    KeyError: if something is missing.
  """
  run = opened.prepared
  how = ranking.make_ranking(opened.config, run.log)
  return LiveState.from_saved(run.system, run.inputs, saved, how)


def _replay(
  run: prepared.PreparedRun,
  bound: BoundSystem,
  memory: SystemMemory,
  split: str,
) -> SystemMemory:
  """The memory after a split, whose events are applied and not ranked."""
  plan = run.rank_plans[split]
  progress = Progress(f'replaying {split}', int(plan.batches.size.sum()))
  memory, _ = evaluate.replay(
    bound, memory, plan, None, progress=progress, facet_texts=run.facet_texts
  )
  progress.close()
  return memory


def _check_texts(config: ml_collections.ConfigDict, log: EventLog) -> None:
  """Stops where facets or items' texts are gone.

  They could be written again, but that may be expensive, and nobody who asks
  for a recommendation expects it.
  """
  folder = str(loading.data_folder(config.data))
  if not facet_bank.is_stored(config.facets, log, folder):
    raise InputError(
      f"config.data.dir: {folder!r} does not have the facets or the items' "
      'texts of the run; allowed: the folder of prepared data that the run was '
      'trained with, or --mode=facets with its config first'
    )
