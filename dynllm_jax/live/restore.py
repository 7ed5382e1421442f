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

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.engine import evaluate
from dynllm_jax.facets import facet_bank
from dynllm_jax.live.growing_graph import GrowingGraph
from dynllm_jax.live.live_state import live_inputs
from dynllm_jax.live.live_state import LiveState
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


class Restored(NamedTuple):
  """A run, ready to answer.

  Attributes:
    config: of the run, for one device.
    name: the system's, with its variant, as results have it.
    identity: what its checkpoints remember of configuration and data.
    log: the prepared log.
    facets: where the texts of the facets are.
    state: after the events that were asked for.
  """

  config: ml_collections.ConfigDict
  name: str
  identity: dict[str, Any]
  log: EventLog
  facets: pathlib.Path
  state: LiveState


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


def restore(
  workdir: str, until: str = 'log', data_dir: str | None = None
) -> Restored:
  """Restores the best epoch of a run, and replays what came after training.

  Args:
    workdir: the folder of a run with `--mode=train`.
    until: 'train', 'validation' or 'log': the end of the split up to which
      events are known.
    data_dir: where prepared data are now; None: where they were.

  Raises:
    InputError: for whatever is wrong with the folder, or gone.
  """
  if until not in SPLITS:
    raise checks.not_allowed('until', until, ', '.join(SPLITS))
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
    log = loading.load_prepared(
      config.data, status.identity['data_fingerprint']
    )
    _check_texts(config, log)
    run = prepared.prepare(config, log)
    current = identity.without_newer(status.identity, run.identity)
    identity.check(status.identity, current, workdir, resume=False)
    trained = checkpoints.restore('best', prepared.initial_state(run))

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
  state = LiveState(
    bound.replace(inputs=live_inputs(run.inputs, *graphs)),
    memory,
    *graphs,
    newest=int(times[-1]),
    block_size=config.eval.block_size,
  )
  return Restored(
    config=config,
    name=run.name,
    identity=run.identity,
    log=log,
    facets=pathlib.Path(run.facets['folder']),
    state=state,
  )


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
