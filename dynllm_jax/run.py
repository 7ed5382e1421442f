"""One run from log to report: what the modes of main.py do."""

import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import batching
from dynllm_jax import config as config_lib
from dynllm_jax import datasets
from dynllm_jax import evaluate
from dynllm_jax import inputs as inputs_lib
from dynllm_jax import metrics
from dynllm_jax import reporting
from dynllm_jax import sharding
from dynllm_jax import train
from dynllm_jax.checkpoint import Checkpoints
from dynllm_jax.facets import bank
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import System
from dynllm_jax.types import TooLargeError
from dynllm_jax.types import TrainState

say = reporting.say


class Run(NamedTuple):
  """A configuration with everything that it names, ready to train or rank."""
  config: ml_collections.ConfigDict
  log: EventLog
  facets: dict[str, Any]  # who wrote and encoded them, for reports
  inputs: Inputs  # on the device
  system: System
  trainer: train.Trainer
  train_plan: batching.BatchPlan
  mesh: jax.sharding.Mesh
  name: str  # in results


def system_name(config: ml_collections.ConfigDict) -> str:
  """The system's name in results: `+walk` with any term of SPEC 3.11."""
  model = config.model
  walk = model.get('copy_term', False) or model.get('walk_term', False)
  return model.name + ('+walk' if walk else '')


def prepare(config: ml_collections.ConfigDict) -> Run:
  """Checks the configuration, loads the data and makes the inputs.

  Nothing is written into the run folder.

  Raises:
    InputError: for whatever is wrong with configuration or data.
  """
  mesh = sharding.make_mesh(config)
  jax.config.update(
      'jax_compilation_cache_dir',
      str(datasets.data_folder(config.data) / 'compiled'))
  system = config_lib.system_module(config.model.name).build(config.model)
  log = datasets.load(config.data, say)
  evaluate.ranking_of(config, log)
  evaluate.candidate_mask(log, config.eval.candidates)
  folder = datasets.data_folder(config.data)
  facet_bank, facets = bank.build(config.facets, log, folder, say)
  item_text = bank.item_text(config.facets.encoder, log, folder)
  train_plan = batching.plan_batches(
      log.times, 0, log.train_end, config.train.batch_size)
  largest = max(
      config.train.batch_size, config.eval.batch_size,
      batching.MAX_ROWS_BY_TIME)
  inputs = sharding.replicate(
      mesh, inputs_lib.build_inputs(log, item_text, facet_bank, largest))
  trainer = train.make_trainer(system, config, mesh, len(train_plan.start))
  return Run(
      config, log, facets, inputs, system, trainer, train_plan, mesh,
      system_name(config))


def initial_state(run: Run) -> TrainState:
  """The state before training, placed on the mesh."""
  capacity = run.train_plan.batch_size * run.train_plan.num_parts
  return sharding.replicate(run.mesh, train.init_state(
      run.trainer, run.config.seed, run.inputs, capacity))


def rank_splits(
    run: Run, state: TrainState,
    splits: tuple[str, ...]) -> dict[str, tuple[np.ndarray, float]]:
  """Ranks validation, then test, from the end of the training split.

  Args:
    run: the run.
    state: at the end of an epoch; it is left as it is.
    splits: ('validation',) or ('validation', 'test').

  Returns:
    For each split the f64[events] ranks and the seconds they took.
  """
  plans = evaluate.split_plans(
      run.system, run.log, run.config.eval.batch_size)
  candidates = jnp.asarray(
      evaluate.candidate_mask(run.log, run.config.eval.candidates))
  ranking = evaluate.ranking_of(run.config, run.log)
  memory = evaluate.after_pending(
      run.system, state.params, state.memory, run.inputs, state.pending)
  results = {}
  for split in splits:
    plan = plans[split]
    progress = reporting.Progress(f'ranking {split}', int(plan.size.sum()))
    memory, ranks = evaluate.replay(
        run.system, state.params, memory, run.inputs, plan, ranking,
        candidates, progress)
    results[split] = ranks, progress.close()
  return results


def run_floor(run: Run, name: str) -> dict[str, Any]:
  """Validation and test figures of a system without training.

  Args:
    run: whose data and evaluation settings are used.
    name: of the system.

  Returns:
    `{'validation': metrics, 'test': metrics}`.
  """
  config = config_lib.default(name)
  with config.unlocked():
    config.eval = run.config.eval
  system = config_lib.system_module(name).build(config.model)
  if system.feed != 'none':
    raise InputError(
        f'config.eval.compare: {name!r} needs training; allowed: systems '
        'without (popularity, recent_popularity, repeat, transitions, '
        'itemknn)')
  floor = run._replace(
      config=config, system=system,
      trainer=run.trainer._replace(system=system), name=name)
  state, _ = train_one_epoch(floor, initial_state(floor))
  ranked = rank_splits(floor, state, ('validation', 'test'))
  return {
      split: metrics.summary(ranks, run.config.eval.ks)
      for split, (ranks, _) in ranked.items()}


def train_one_epoch(
    run: Run, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
  """An epoch as the system is fed.

  Args:
    run: the run.
    state: its buffers are given away.

  Returns:
    The state and a record: `loss` (absent where nothing is learned),
    `seconds`, `events_per_s`.
  """
  events = run.log.train_end
  progress = reporting.Progress('training', events)
  if run.system.feed == 'none':
    plan = evaluate.split_plans(
        run.system, run.log, run.config.eval.batch_size)['train']
    memory, _ = evaluate.replay(
        run.system, state.params, state.memory, run.inputs, plan, None,
        jnp.zeros([1], bool), progress)
    seconds = progress.close()
    record = {'seconds': seconds, 'events_per_s': events / seconds}
    return state.replace(memory=memory), record
  state, record = train.run_epoch(
      run.trainer, state, run.inputs, run.train_plan, progress)
  progress.close()
  return state, record


def fit(run: Run, checkpoints: Checkpoints, folder: reporting.RunFolder):
  """Trains to early stopping, or goes on from the latest checkpoint.

  Args:
    run: the run.
    checkpoints: of the run folder.
    folder: where metrics go.

  Returns:
    The status record of the last epoch (see `_new_status`).
  """
  identity = config_lib.identity(run.config, run.log.fingerprint)
  state = initial_state(run)
  if checkpoints.epoch('latest') is None:
    status = _new_status(run, identity, state)
    for name in run.config.eval.compare:
      say(f'ranking {name} for comparison')
      try:
        status['floors'][name] = run_floor(run, name)
      except TooLargeError as error:
        status['floors_left_out'][name] = str(error)
        say(f'{name} is left out: {error}')
  else:
    status = checkpoints.status('latest')
    config_lib.check_identity(
        status['identity'], identity, str(folder.path), resume=True)
    state = checkpoints.restore('latest', state)
    say(f'resuming after epoch {status["epochs"]}')
  folder.write_json('config.json', run.config.to_dict())
  while not _finished(run, status):
    state, record = train_one_epoch(run, state)
    ranks, seconds = rank_splits(run, state, ('validation',))['validation']
    summary = metrics.summary(ranks, run.config.eval.ks)
    epoch = status['epochs'] = status['epochs'] + 1
    value = summary[status['watched']]
    best = status['best_value'] is None or value > status['best_value']
    if best:
      status.update(best_epoch=epoch, best_value=value)
    status['history'].append({
        'epoch': epoch, **record, 'validation_seconds': seconds,
        **{f'validation_{k}': v for k, v in summary.items()}})
    if best:
      checkpoints.save('best', epoch, state, status)
    checkpoints.save('latest', epoch, state, status)
    folder.write_metrics(status['history'])
    loss = f'loss {record["loss"]:.4f}, ' if 'loss' in record else ''
    say(f'epoch {epoch}: {loss}validation {status["watched"]} {value:.4f}'
        f'{" (best)" if best else ""}, training {record["seconds"]:.1f} s, '
        f'ranking {seconds:.1f} s')
  return status


def _new_status(run, identity, state):
  """What the checkpoints remember beside the state, as JSON values."""
  return {
      'identity': identity,
      'epochs': 0,
      'watched': f'recall@{run.config.eval.ks[0]}',
      'best_epoch': None,
      'best_value': None,
      'history': [],
      'floors': {},
      'floors_left_out': {},
      'commit': reporting.commit(),
      'parameters': train.num_parameters(state.params),
      'train_step_flops': (
          0.0 if run.system.feed == 'none' else train.step_flops(
              run.trainer, run.train_plan.batch_size, run.inputs, state)),
  }


def _finished(run, status):
  if run.system.feed == 'none':
    return status['epochs'] > 0
  if status['epochs'] >= run.config.train.num_epochs:
    return True
  since_best = status['epochs'] - (status['best_epoch'] or 0)
  return since_best >= run.config.train.patience


def report(run: Run, checkpoints: Checkpoints, folder: reporting.RunFolder):
  """Restores the best epoch, ranks validation and test, writes results.

  Args:
    run: the run.
    checkpoints: of the run folder, with a best epoch.
    folder: where `results.json` goes.

  Returns:
    What was written.

  Raises:
    InputError: if there is no checkpoint, or it is of another configuration.
  """
  if checkpoints.epoch('best') is None:
    raise InputError(
        f'--workdir: {str(folder.path)!r} has no checkpoint to evaluate; '
        'allowed: the folder of a run with --mode=train')
  status = checkpoints.status('best')
  config_lib.check_identity(
      status['identity'],
      config_lib.identity(run.config, run.log.fingerprint), str(folder.path),
      resume=False)
  latest = checkpoints.status('latest')
  state = checkpoints.restore('best', initial_state(run))
  ranked = rank_splits(run, state, ('validation', 'test'))
  results = _results(run, status, latest, state, ranked)
  folder.write_json('results.json', results)
  _print(run, results)
  return results


def _results(run, status, latest, state, ranked):
  """The content of results.json."""
  log, eval_config = run.log, run.config.eval
  groups = evaluate.event_groups(log)
  bounds = {
      'validation': slice(log.train_end, log.validation_end),
      'test': slice(log.validation_end, log.num_events)}
  figures = {}
  for split, (ranks, _) in ranked.items():
    figures[split] = metrics.summary(ranks, eval_config.ks)
    figures[split]['groups'] = {
        name: metrics.summary(ranks[member[bounds[split]]], eval_config.ks)
        for name, member in groups.items()}
  plans = evaluate.split_plans(run.system, log, eval_config.batch_size)
  rates = [epoch['events_per_s'] for epoch in latest['history']]
  ranks, seconds = ranked['test']
  return {
      'system': run.name,
      **figures,
      'floors': status['floors'],
      'floors_left_out': status['floors_left_out'],
      'train_events_per_s': statistics.median(rates),
      'train_seconds_per_epoch': statistics.median(
          epoch['seconds'] for epoch in latest['history']),
      'rank_events_per_s': len(ranks) / seconds,
      'test_seconds': seconds,
      'epochs': latest['epochs'],
      'best_epoch': status['best_epoch'],
      'seed': run.config.seed,
      'parameters': status['parameters'],
      'train_step_flops': status['train_step_flops'],
      'peak_memory_bytes': reporting.peak_memory_bytes(),
      'data': {
          'source': log.source,
          'simulated': log.simulated,
          'fingerprint': log.fingerprint,
          'users': log.num_users,
          'items': log.num_items,
          'events': log.num_events,
          'train_events': log.train_end,
          'validation_events': log.validation_end - log.train_end,
          'test_events': log.num_events - log.validation_end,
          'counts': log.counts,
      },
      'facets': run.facets,
      'evaluation': {
          'batch_size': (
              'every distinct time' if run.system.by_time
              else eval_config.batch_size),
          'candidates': eval_config.candidates,
          'filter_seen': eval_config.filter_seen,
          'groups_of_equal_times_over_a_batch': {
              **{name: plans[name].num_split_groups
                 for name in ('validation', 'test')},
              'train': run.train_plan.num_split_groups},
      },
      'mesh': dict(run.mesh.shape),
      'bytes_per_device': sharding.bytes_per_device({
          'memory': state.memory, 'inputs': run.inputs}),
      'commit': status['commit'],
      'machine': reporting.machine(),
  }


def _print(run, results):
  log = run.log
  kind = 'simulated log' if log.simulated else 'log'
  say(f'\n{kind}: {log.source}; {log.num_users:,} users, '
      f'{log.num_items:,} items, {log.num_events:,} events')
  say(f'facets: {run.facets["writer"]}; encoder: {run.facets["encoder"]}')
  columns = [
      f'{metric}@{k}' for metric in ('recall', 'ndcg')
      for k in run.config.eval.ks] + ['mrr']
  for split in ('validation', 'test'):
    rows = {run.name: results[split]}
    rows.update({n: v[split] for n, v in results['floors'].items()})
    say(f'\n{split}, whole catalogue' if run.config.eval.candidates == 'all'
        else f'\n{split}, items of the two last splits')
    say(reporting.table(rows, columns))
  say(f'\nepochs {results["epochs"]} (best {results["best_epoch"]}), training '
      f'{results["train_events_per_s"]:,.0f} events/s '
      f'({results["train_seconds_per_epoch"]:.1f} s an epoch), ranking '
      f'{results["rank_events_per_s"]:,.0f} events/s '
      f'({results["test_seconds"]:.1f} s for the test split), peak memory '
      f'{results["peak_memory_bytes"] / 2 ** 30:.2f} GiB, '
      f'{results["parameters"]:,} parameters')


def train_mode(config: ml_collections.ConfigDict, workdir: str) -> None:
  """`--mode=train`: data, facets, training, test."""
  run = prepare(config)
  folder = reporting.RunFolder(workdir)
  began = time.perf_counter()
  with Checkpoints(folder.path) as checkpoints:
    fit(run, checkpoints, folder)
    report(run, checkpoints, folder)
  say(f'{time.perf_counter() - began:.1f} s; wrote '
      f'{folder.path / "results.json"}')


def evaluate_mode(config: ml_collections.ConfigDict, workdir: str) -> None:
  """`--mode=evaluate`: restores the best epoch, validates and tests."""
  folder = reporting.RunFolder(workdir)
  if not (folder.path / 'checkpoints').is_dir():
    raise InputError(
        f'--workdir: {workdir!r} has no checkpoint to evaluate; allowed: the '
        'folder of a run with --mode=train')
  run = prepare(config)
  with Checkpoints(folder.path) as checkpoints:
    report(run, checkpoints, folder)


def facets_mode(config: ml_collections.ConfigDict, workdir: str) -> None:
  """`--mode=facets`: prepares the data and precomputes facets, no more."""
  del workdir
  log = datasets.load(config.data, say)
  folder = datasets.data_folder(config.data)
  _, facets = bank.build(config.facets, log, folder, say)
  bank.item_text(config.facets.encoder, log, folder)
  say(f'facets are ready: {facets}')
