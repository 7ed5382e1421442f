"""What the modes of main.py do: train to a report, evaluate, precompute."""

from collections.abc import Callable
import time
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax import compiling
from dynllm_jax.datasets import loading
from dynllm_jax.engine import metrics
from dynllm_jax.engine import train
from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import user_report
from dynllm_jax.parallel import processes
from dynllm_jax.progress import say
from dynllm_jax.runs import cases
from dynllm_jax.runs import config_check
from dynllm_jax.runs import identity
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.runs import results as results_lib
from dynllm_jax.runs import run_page
from dynllm_jax.runs import warm_start
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.runs.status import WATCHED
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import TooLargeError
from dynllm_jax.types import TrainState

# Fields of `config.eval` on which ranks depend: where one differs from the
# checkpoint's, the floors that it remembers are ranked again.
_PROTOCOL = ('ks', 'batch_size', 'candidates', 'filter_seen')


def train_mode(
  config: ml_collections.ConfigDict, workdir: str, init_from: str = ''
) -> dict[str, Any]:
  """`--mode=train`: data, facets, training, test.

  Args:
    config: the configuration.
    workdir: the run folder; if it holds a run, that run goes on.
    init_from: the folder of another run, whose parameters training starts
      from; '' for none.

  Returns:
    The content of `results.json`; empty where `config.eval.test` is off.

  Raises:
    InputError: for whatever is wrong with configuration, data or run folder.
  """
  compiling.tell(say)
  folder = RunFolder(workdir)
  folder.check()
  run = prepared.prepare(config)
  processes.check_shared_folder(folder.path)
  began = time.perf_counter()

  with folder.held(), Checkpoints(folder.path) as checkpoints:
    if finished := _finished_results(run, checkpoints, folder):
      say(
        f'this run is finished, after epoch {finished["epochs"]}: these are '
        'its results (--mode=evaluate ranks again)'
      )
      results_lib.show(finished)
      return finished
    fit(run, checkpoints, folder, init_from)
    results = report(run, checkpoints, folder) if config.eval.test else {}

  wrote = 'report.html' if config.eval.test else 'metrics.jsonl'
  say(f'{time.perf_counter() - began:.1f} s; wrote {folder.path / wrote}')
  return results


def _finished_results(
  run: PreparedRun, checkpoints: Checkpoints, folder: RunFolder
) -> dict[str, Any] | None:
  """The results of a run that has nothing left to do; None of any other.

  They count where they are those of its last epochs, ranked as the
  configuration says.

  Raises:
    InputError: if the folder holds a run of another configuration.
  """
  results = folder.read_json('results.json')
  files = ('report.html', 'ranks.npz', 'metrics.jsonl')
  if (
    results is None
    or 'verdict' not in results
    or not run.config.eval.test
    or _newest(checkpoints) != 'latest'
    or not all((folder.path / name).exists() for name in files)
  ):
    return None

  status = Status.from_json(checkpoints.status('latest'))
  identity.check(status.identity, run.identity, str(folder.path), resume=True)
  floors = {*results['floors'], *results['floors_left_out']}
  same = (
    _is_finished(run, status)
    and results['epochs'] == status.epochs
    and results['best_epoch'] == status.best_epoch
    and floors == set(run.floors)
    and results['data']['fingerprint'] == run.log.fingerprint
    and results['evaluation'] == results_lib.about_evaluation(run)
  )
  return results if same else None


def evaluate_mode(
  config: ml_collections.ConfigDict,
  workdir: str,
  log: EventLog | None = None,
) -> dict[str, Any]:
  """`--mode=evaluate`: restores the best epoch, validates and tests.

  Args:
    config: the configuration.
    workdir: the folder of a run with `--mode=train`.
    log: the prepared log; None: the one of `config.data`.

  Returns:
    The content of `results.json`.

  Raises:
    InputError: for whatever is wrong with configuration, data or run folder.
  """
  folder = RunFolder(workdir)
  folder.check()
  if not (folder.path / 'checkpoints').is_dir():
    raise _nothing_to_evaluate(workdir)
  run = prepared.prepare(config, log)
  with folder.held(), Checkpoints(folder.path) as checkpoints:
    return report(run, checkpoints, folder)


def facets_mode(
  config: ml_collections.ConfigDict,
  dry_run: bool = False,
  user: str | None = None,
) -> None:
  """`--mode=facets`: prepares the data and precomputes facets, no more.

  Args:
    config: the configuration.
    dry_run: say what that would take instead, and spend nothing.
    user: print the facets of this user instead; they must be written already.

  Raises:
    InputError: for whatever is wrong with configuration or data.
  """
  config_check.check(config)
  compiling.tell(say)
  log = loading.load(config.data, say)
  folder = str(loading.data_folder(config.data))
  if user is not None:
    user_report.show(config.facets, log, folder, user, report=say)
  elif dry_run:
    facet_bank.plan(config.facets, log, folder, say)
  else:
    prepared.keep_compiled(config)
    _, facets = facet_bank.build(config.facets, log, folder, say)
    facet_bank.item_text(config.facets.encoder, log, folder, say)
    say(f'facets are ready: {facets}')


def check_mode(config: ml_collections.ConfigDict) -> None:
  """`--mode=check`: checks all fields, and looks at the first rows of the log.

  Args:
    config: the configuration.

  Raises:
    InputError: for what is wrong with fields or rows; `checks.Faults` for
      several fields.
  """
  config_check.check(config)
  say('check: every field of the configuration is allowed')
  loading.preview(config.data, say)


def fit(
  run: PreparedRun,
  checkpoints: Checkpoints,
  folder: RunFolder,
  init_from: str = '',
  go_on: Callable[[Status], bool] = lambda status: True,
) -> Status:
  """Trains to early stopping, or goes on from the latest checkpoint.

  Args:
    run: the run.
    checkpoints: of the run folder.
    folder: where metrics go.
    init_from: as that of `train_mode`.
    go_on: whether there is time for another epoch; the first one is trained in
      any case.

  Returns:
    The status after the last epoch.

  Raises:
    InputError: if the folder holds a run of another configuration, or one
      that lacks a checkpoint.
  """
  state, status = _start(run, checkpoints, folder, init_from)
  folder.write_json('config.json', run.config.to_dict())
  while not _is_finished(run, status) and (not status.epochs or go_on(status)):
    state = _fit_one_epoch(
      run, state, status, checkpoints=checkpoints, folder=folder
    )
  return status


def _start(
  run: PreparedRun,
  checkpoints: Checkpoints,
  folder: RunFolder,
  init_from: str,
) -> tuple[TrainState, Status]:
  """State and status of the last finished epoch, or before the first."""
  kind = _newest(checkpoints)
  if kind is None:
    return _first(run, init_from)

  status = Status.from_json(checkpoints.status(kind))
  identity.check(status.identity, run.identity, str(folder.path), resume=True)
  if checkpoints.epoch('best') != status.best_epoch:
    raise InputError(
      f'--workdir: {str(folder.path)!r} lacks the checkpoint of its best '
      f'epoch, {status.best_epoch}; allowed: a whole run folder, or another '
      'one'
    )

  state = checkpoints.restore(kind, prepared.state_shapes(run))
  # A run that was killed between its two saves makes up for the second.
  if kind == 'best':
    checkpoints.save('latest', status.epochs, state, status.to_json())
  folder.write_metrics(status.history)
  say(f'resuming after epoch {status.epochs}')
  return state, status


def _first(run: PreparedRun, init_from: str) -> tuple[TrainState, Status]:
  """State and status before the first epoch."""
  state, origin = prepared.initial_state(run), None
  if init_from:
    state, origin = warm_start.start_from(run, state, init_from)
    say(f'starting from {init_from}, epoch {origin["epoch"]}')
  return state, Status(
    identity=run.identity,
    commit=provenance.commit(),
    parameters=train.num_parameters(state.params),
    started_from=origin,
  )


def _newest(checkpoints: Checkpoints) -> str | None:
  """The checkpoint of the last finished epoch, None before the first.

  A best epoch is saved as the best before it is saved as the latest, so that
  the best one is ahead where a run was killed between the two.
  """
  latest, best = (checkpoints.epoch(kind) for kind in ('latest', 'best'))
  if best == (latest or 0) + 1:
    return 'best'
  return None if latest is None else 'latest'


def _fit_one_epoch(
  run: PreparedRun,
  state: TrainState,
  status: Status,
  *,
  checkpoints: Checkpoints,
  folder: RunFolder,
) -> TrainState:
  """Trains an epoch, ranks validation, and saves both; changes `status`."""
  with run.stopwatch.part('training'):
    state, record = prepared.train_one_epoch(run, state)
  if not status.epochs:
    if run.system.feed != 'none':
      status.train_step_flops = train.step_flops(
        run.trainer, run.train_plan, run.inputs, state
      )
    _rank_floors(run, status, folder)

  with run.stopwatch.part('ranking validation'):
    ranked = prepared.rank_splits(
      run, state, ('validation',), run.config.eval.validation_events
    )
  ranks, seconds = ranked['validation']
  # Early stopping looks at recall@10, whatever cut-offs are reported.
  summary = metrics.summary(ranks, sorted({*run.config.eval.ks, 10}))
  is_best = status.add_epoch(record, summary, seconds)

  with run.stopwatch.part('checkpoints'):
    if is_best:
      checkpoints.save('best', status.epochs, state, status.to_json())
    checkpoints.save('latest', status.epochs, state, status.to_json())
  folder.write_metrics(status.history)

  loss = f'loss {record["loss"]:.4f}, ' if 'loss' in record else ''
  say(
    f'epoch {status.epochs}: {loss}validation {WATCHED} '
    f'{summary[WATCHED]:.4f}{" (best)" if is_best else ""}, training '
    f'{record["seconds"]:.1f} s, ranking {seconds:.1f} s'
  )
  return state


def _rank_floors(
  run: PreparedRun, status: Status, folder: RunFolder
) -> dict[str, np.ndarray]:
  """Ranks those systems of `eval.compare` whose figures or ranks are missing.

  Args:
    run: the run.
    status: gets the figures.
    folder: keeps the ranks of the test events, in `floors.npz`.

  Returns:
    f32[test events] ranks of each floor, by name.
  """
  stored = folder.read_arrays('floors.npz')
  ranks = {}
  for name in run.floors:
    if name in status.floors_left_out:
      continue
    # Figures and ranks are written one after the other, and a run may have been
    # evaluated in another way since: ranks count where they give the figures.
    if name in status.floors and name in stored:
      mrr = metrics.mean_reciprocal_rank(stored[name])
      if mrr == status.floors[name]['test']['mrr']:
        ranks[name] = stored[name]
        continue

    say(f'ranking {name} for comparison')
    try:
      with run.stopwatch.part('ranking floors'):
        found = prepared.run_floor(run, name)
    except TooLargeError as error:
      status.floors_left_out[name] = str(error)
      say(f'{name} is left out: {error}')
      continue
    status.floors[name] = {
      split: metrics.summary(split_ranks, run.config.eval.ks)
      for split, split_ranks in found.items()
    }
    ranks[name] = found['test'].astype(np.float32)

  if any(
    name not in stored or ranks[name] is not stored[name] for name in ranks
  ):
    folder.write_arrays('floors.npz', ranks)
  return ranks


def _is_finished(run: PreparedRun, status: Status) -> bool:
  """Whether training has come to its end (SPEC 4)."""
  if status.epochs >= prepared.num_epochs(run):
    return True
  since_best = status.epochs - (status.best_epoch or 0)
  return since_best >= run.config.train.patience


def report(
  run: PreparedRun, checkpoints: Checkpoints, folder: RunFolder
) -> dict[str, Any]:
  """Restores the best epoch, ranks validation and test, writes results.

  Args:
    run: the run.
    checkpoints: of the run folder, with a best epoch.
    folder: where `results.json` and `ranks.npz` go.

  Returns:
    The content of `results.json`.

  Raises:
    InputError: if there is no checkpoint, or it is of another configuration.
  """
  compiling.tell(say)
  if checkpoints.epoch('best') is None:
    raise _nothing_to_evaluate(str(folder.path))
  status = Status.from_json(checkpoints.status('best'))
  latest = Status.from_json(checkpoints.status('latest'))
  identity.check(status.identity, run.identity, str(folder.path), resume=False)
  if any(
    status.identity['eval'][field] != run.identity['eval'][field]
    for field in _PROTOCOL
  ):
    status.floors, status.floors_left_out = {}, {}
  floor_ranks = _rank_floors(run, status, folder)

  state = checkpoints.restore('best', prepared.state_shapes(run))
  seen: list[cases.Case] = []

  def look(split: str, bound: BoundSystem, memory: SystemMemory) -> None:
    if split == 'test':
      with run.stopwatch.part('cases of the report'):
        seen.extend(cases.collect(run, bound, memory))

  with run.stopwatch.part('ranking the report'):
    ranked = prepared.rank_splits(run, state, ('validation', 'test'), look=look)
  results = results_lib.collect(
    run,
    best=status,
    latest=latest,
    state=state,
    ranked=ranked,
    floor_ranks=floor_ranks,
  )
  _write(run, folder, results=results, ranked=ranked)
  ranks = results_lib.with_floors(run, ranked['test'][0], floor_ranks)
  folder.write_text(
    'report.html', run_page.page(results, ranks, latest.history, seen)
  )
  results_lib.show(results)
  return results


def _write(
  run: PreparedRun,
  folder: RunFolder,
  *,
  results: dict[str, Any],
  ranked: dict[str, tuple[np.ndarray, float]],
) -> None:
  """Writes ranks and results."""
  validation, test = (ranked[split][0] for split in ('validation', 'test'))
  users = run.log.users[run.log.train_end :]
  folder.write_arrays(
    'ranks.npz',
    {
      'validation': validation.astype(np.float32),
      'test': test.astype(np.float32),
      'validation_users': users[: len(validation)],
      'test_users': users[len(validation) :],
    },
  )
  folder.write_json('results.json', results)


def _nothing_to_evaluate(workdir: str) -> InputError:
  return InputError(
    f'--workdir: {workdir!r} has no checkpoint to evaluate; allowed: the '
    'folder of a run with --mode=train'
  )
