"""A configuration made ready to run, and what a run is made of.

`prepare` loads the data and builds the system; the functions after it train an
epoch and rank the splits. modes.py puts them together.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import Concatenate
from typing import NamedTuple
from typing import ParamSpec
from typing import TypeVar

import jax
import ml_collections
import numpy as np

from dynllm_jax import compiling
from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.engine import batching
from dynllm_jax.engine import evaluate
from dynllm_jax.engine import feeds
from dynllm_jax.engine import ranking
from dynllm_jax.engine import resident_texts
from dynllm_jax.engine import train
from dynllm_jax.engine.training_step import Trainer
from dynllm_jax.facets import facet_bank
from dynllm_jax.graph import inputs as inputs_lib
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import processes
from dynllm_jax.parallel import sharded_table
from dynllm_jax.progress import Progress
from dynllm_jax.progress import say
from dynllm_jax.runs import config_check
from dynllm_jax.runs import identity as identity_lib
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs.stopwatch import Stopwatch
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import Inputs
from dynllm_jax.types import System
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TrainState


class Floor(NamedTuple):
  """A system that is ranked beside the run's own.

  Attributes:
    system: counts alone, or counts with a few weights that are quickly learned.
    train: `config.train`, at the system's defaults.
  """

  system: System
  train: ml_collections.ConfigDict


_Arguments = ParamSpec('_Arguments')
_Result = TypeVar('_Result')


@dataclasses.dataclass(frozen=True)
class PreparedRun:
  """A configuration with everything that it names, ready to train or rank.

  Attributes:
    config: the whole configuration.
    name: the system's, with its variant, as results have it.
    identity: what checkpoints remember of the configuration and the data, as
      JSON values (identity.py).
    log: the prepared log, on the host.
    facets: who wrote and encoded the facets, how many there are and how long
      it took; JSON values for reports (facets/facet_bank.py).
    inputs: all that the system may read, on the devices.
    facet_texts: f16[unique_texts, llm_dim], embeddings of facets that stay on
      the host and go to the devices a chunk of batches at a time
      (engine/resident_texts.py); None where the devices have all that is read.
    trainer: the system, its optimizer and the mesh.
    train_plan: batches of the training split, or of sequences of its events.
    rank_plans: chronological batches of each split: 'train', 'validation',
      'test'.
    floors: the systems of `config.eval.compare`, by name.
    stopwatch: where the time of this process goes.
  """

  config: ml_collections.ConfigDict
  name: str
  identity: dict[str, Any]
  log: EventLog
  facets: dict[str, Any]
  inputs: Inputs
  facet_texts: np.ndarray | None
  trainer: Trainer
  train_plan: batching.BatchPlan
  rank_plans: dict[str, batching.BatchPlan]
  floors: dict[str, Floor]
  stopwatch: Stopwatch = dataclasses.field(default_factory=Stopwatch)

  @property
  def system(self) -> System:
    return self.trainer.system

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.trainer.mesh


def system_name(config: ml_collections.ConfigDict) -> str:
  """The system's name in results, with the variants that have all its terms."""
  model = config.model
  name = model.name
  if model.get('text_term', False):
    name += '+text'
  elif model.get('copy_term', False) or model.get('walk_term', False):
    name += '+walk'
  return name + ('+counts' if model.get('count_terms', False) else '')


def keep_compiled(config: ml_collections.ConfigDict) -> None:
  """Keeps compiled programs in `config.data.dir`, for later runs.

  If JAX has already been told where to keep them (JAX_COMPILATION_CACHE_DIR),
  they are kept there.
  """
  # JAX makes the attributes of its configuration at run time.
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  jax.config.update(
    'jax_compilation_cache_dir',
    str(loading.data_folder(config.data) / 'compiled'),
  )
  # JAX would leave out those that compile in less than a second, of which there
  # are many.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def prepare(
  config: ml_collections.ConfigDict, log: EventLog | None = None
) -> PreparedRun:
  """Checks the configuration, loads the data and makes the inputs.

  Nothing is written into the run folder.

  Args:
    config: the whole configuration.
    log: the prepared log; None: the one of `config.data`.

  Raises:
    InputError: for whatever is wrong with configuration or data.
  """
  stopwatch = Stopwatch()

  jax_settings.check()
  # First whatever the configuration alone shows to be wrong.
  processes.check_same('configuration', config_lib.leaves(config))
  config_check.check(config, files=log is None)
  mesh = device_mesh.make_mesh(config)
  keep_compiled(config)
  system = config_lib.system_module(config.model.name).build(config.model)
  floors = {
    name: Floor(*config_check.build_floor(name)) for name in config.eval.compare
  }

  # Then whatever the log shows to be wrong, before facets are written, which
  # may be expensive.
  with stopwatch.part('reading the log'):
    log = log or loading.load(config.data, say)
  processes.check_same(
    'log', {'the prepared data (config.data)': log.fingerprint}
  )
  ranking.make_ranking(config, log)

  folder = str(loading.data_folder(config.data))
  with stopwatch.part('facets and texts'):
    bank, facets = facet_bank.build(config.facets, log, folder, say)
    item_text = facet_bank.item_text(config.facets.encoder, log, folder, say)
  bank, facet_texts = resident_texts.split(
    bank, system.reads_facets, config.facets.device_gib
  )
  largest_batch = max(
    config.train.batch_size,
    config.eval.batch_size,
    batching.MAX_ROWS_BY_TIME,
    *(floor.train.batch_size for floor in floors.values()),
  )
  with stopwatch.part('placing the data'):
    inputs = device_mesh.put_on_mesh(
      mesh,
      device_mesh.cut_into_blocks(
        mesh,
        inputs_lib.build_inputs(
          log,
          item_text,
          bank,
          padding=largest_batch,
          train_graph=system.reads_train_graph,
          sold=config.train.negatives == 'sold',
          whitening=config.model.get('text_whitening', False),
        ),
      ),
    )

  train_plan = feeds.training_plan(system, log, config.train.batch_size, mesh)
  trainer = train.make_trainer(system, config, mesh, len(train_plan.batches))
  identity = identity_lib.identity(
    config, log.fingerprint, *facet_bank.identities(config.facets, folder)
  )
  return PreparedRun(
    config=config,
    name=system_name(config),
    identity=identity,
    log=log,
    facets=facets,
    inputs=inputs,
    facet_texts=facet_texts,
    trainer=trainer,
    train_plan=train_plan,
    rank_plans=evaluate.split_plans(system, log, config.eval.batch_size, mesh),
    floors=floors,
    stopwatch=stopwatch,
  )


def _on_mesh(
  function: Callable[Concatenate[PreparedRun, _Arguments], _Result],
) -> Callable[Concatenate[PreparedRun, _Arguments], _Result]:
  """A function of a run, called within the run's mesh."""

  @functools.wraps(function)
  def wrapped(
    run: PreparedRun, *args: _Arguments.args, **kwargs: _Arguments.kwargs
  ) -> _Result:
    with sharded_table.use_mesh(run.mesh):
      return function(run, *args, **kwargs)

  return wrapped


def initial_state(run: PreparedRun) -> TrainState:
  """The state before training, on the mesh."""
  return device_mesh.compute_on_mesh(run.mesh, _first_state(run), run.inputs)


def state_shapes(run: PreparedRun) -> TrainState:
  """Shapes and shardings of a run's state, into which a checkpoint is read."""
  return device_mesh.shapes_on_mesh(run.mesh, _first_state(run), run.inputs)


def _first_state(run: PreparedRun) -> Callable[[Inputs], TrainState]:
  return functools.partial(
    train.init_state,
    run.trainer,
    run.config.seed,
    capacity=run.train_plan.capacity,
  )


@_on_mesh
def rank_splits(
  run: PreparedRun,
  state: TrainState,
  splits: tuple[str, ...],
  sample: int = 0,
  look: Callable[[str, BoundSystem, SystemMemory], None] | None = None,
) -> dict[str, tuple[np.ndarray, float]]:
  """Ranks validation, then test, from the end of the training split (SPEC 5).

  The memory goes on from one split to the next.

  Args:
    run: the run.
    state: at the end of an epoch; it is not changed.
    splits: ('validation',) or ('validation', 'test').
    sample: events of each split that are ranked, 0 for all.
    look: called with a split's name, the system and the memory before its
      first event, within the run's mesh.

  Returns:
    For each split the f64[events] ranks and the seconds they took, compiling
    left out.
  """
  how = device_mesh.put_on_mesh(
    run.mesh, ranking.make_ranking(run.config, run.log)
  )
  bound = BoundSystem(run.system, state.params, run.inputs)
  # Updates that training had still to apply come first.
  memory = evaluate.memory_for_replay(bound, state.memory, state.pending)

  results = {}
  for split in splits:
    plan = run.rank_plans[split]
    if look:
      look(split, bound, memory)
    progress = Progress(f'ranking {split}', int(plan.batches.size.sum()))
    memory, ranks = evaluate.replay(
      bound,
      memory,
      plan,
      how,
      progress=progress,
      chosen=evaluate.sample_batches(plan, sample),
      facet_texts=run.facet_texts,
    )
    results[split] = ranks, progress.close()
  return results


def run_floor(run: PreparedRun, name: str) -> dict[str, np.ndarray]:
  """Ranks validation and test by a system of `eval.compare`.

  One that learns is trained here, once and for all of its epochs: its few
  weights have nothing to overfit with, so that no epoch is chosen.

  Args:
    run: whose data and evaluation settings are used.
    name: of the system.

  Returns:
    `{'validation': f64[events] ranks, 'test': ranks}`.
  """
  system, train_config = run.floors[name]
  config = run.config.copy_and_resolve_references()
  config.train.update(train_config)
  plan = feeds.training_plan(system, run.log, config.train.batch_size, run.mesh)
  floor = dataclasses.replace(
    run,
    config=config,
    trainer=train.make_trainer(system, config, run.mesh, len(plan.batches)),
    name=name,
    train_plan=plan,
    rank_plans=evaluate.split_plans(
      system, run.log, config.eval.batch_size, run.mesh
    ),
    facet_texts=None,
  )
  state = initial_state(floor)
  for _ in range(num_epochs(floor)):
    state, _ = train_one_epoch(floor, state)
  ranked = rank_splits(floor, state, ('validation', 'test'))
  return {split: ranks for split, (ranks, _) in ranked.items()}


def num_epochs(run: PreparedRun) -> int:
  """Epochs that a run has at most; one that learns nothing has one."""
  if run.system.feed == 'none':  # one replay of the events fills its memory
    return 1
  return train.num_epochs(run.config.train, len(run.train_plan.batches))


@_on_mesh
def train_one_epoch(
  run: PreparedRun, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """Trains on all training events once, or replays them where nothing learns.

  Args:
    run: the run.
    state: its buffers are donated.

  Returns:
    The state and a record: `loss` (absent where nothing is learned),
    `seconds`, `events_per_s`, and `compile_seconds`, which the two leave out.
  """
  events = run.log.train_end
  progress = Progress('training', events)

  if run.system.feed == 'none':
    compiled = compiling.seconds()
    memory, _ = evaluate.replay(
      BoundSystem(run.system, state.params, run.inputs),
      state.memory,
      run.rank_plans['train'],
      None,
      progress=progress,
    )
    seconds = progress.close()
    record = {
      'seconds': seconds,
      'compile_seconds': compiling.seconds() - compiled,
      'events_per_s': events / seconds,
    }
    return state.replace(memory=memory), record

  state, record = train.run_epoch(
    run.trainer,
    state,
    run.inputs,
    run.train_plan,
    progress=progress,
    facet_texts=run.facet_texts,
  )
  progress.close()
  return state, record
