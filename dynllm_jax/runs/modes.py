"""What the modes of main.py do: train to a report, evaluate, precompute."""

import time
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax import progress
from dynllm_jax.datasets import loading
from dynllm_jax.engine import metrics
from dynllm_jax.engine import train
from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import user_report
from dynllm_jax.parallel import processes
from dynllm_jax.runs import identity
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.runs import results as results_lib
from dynllm_jax.runs import run_folder
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.types import InputError
from dynllm_jax.types import TooLargeError

say = progress.say

_WATCHED = 'recall@10'  # on validation, by early stopping (SPEC 4)
# Fields of `eval` on which ranks depend, and what is said of them.
_PROTOCOL = ('ks', 'batch_size', 'candidates', 'filter_seen')


def fit(
  run: PreparedRun, checkpoints: Checkpoints, folder: run_folder.RunFolder
) -> dict[str, Any]:
  """Trains to early stopping, or goes on from the latest checkpoint.

  Args:
    run: the run.
    checkpoints: of the run folder.
    folder: where metrics go.

  Returns:
    The status record of the last epoch (see `_new_status`).
  """
  state = prepared.initial_state(run)
  kind = _newest(checkpoints)
  if kind is None:
    status = _new_status(run, state)
  else:
    status = checkpoints.status(kind)
    identity.check(
      status['identity'], run.identity, str(folder.path), resume=True
    )
    if checkpoints.epoch('best') != status['best_epoch']:
      raise InputError(
        f'--workdir: {str(folder.path)!r} lacks the checkpoint of its best '
        f'epoch, {status["best_epoch"]}; allowed: a whole run folder, or '
        'another one'
      )
    state = checkpoints.restore(kind, state)
    if kind == 'best':
      checkpoints.save('latest', status['epochs'], state, status)
    folder.write_metrics(status['history'])
    say(f'resuming after epoch {status["epochs"]}')
  folder.write_json('config.json', run.config.to_dict())
  while not _finished(run, status):
    state, record = prepared.train_one_epoch(run, state)
    if not status['epochs']:
      if run.system.feed != 'none':
        status['train_step_flops'] = train.step_flops(
          run.trainer, run.train_plan, run.inputs, state
        )
      _add_floors(run, status)
    ranked = prepared.rank_splits(
      run, state, ('validation',), run.config.eval.validation_events
    )
    ranks, seconds = ranked['validation']
    summary = metrics.summary(ranks, sorted({*run.config.eval.ks, 10}))
    epoch = status['epochs'] = status['epochs'] + 1
    value = summary[_WATCHED]
    best = status['best_value'] is None or value > status['best_value']
    if best:
      status.update(best_epoch=epoch, best_value=value)
    status['history'].append(
      {
        'epoch': epoch,
        **record,
        'validation_seconds': seconds,
        **{f'validation_{k}': v for k, v in summary.items()},
      }
    )
    if best:
      checkpoints.save('best', epoch, state, status)
    checkpoints.save('latest', epoch, state, status)
    folder.write_metrics(status['history'])
    loss = f'loss {record["loss"]:.4f}, ' if 'loss' in record else ''
    say(
      f'epoch {epoch}: {loss}validation {_WATCHED} {value:.4f}'
      f'{" (best)" if best else ""}, training {record["seconds"]:.1f} s, '
      f'ranking {seconds:.1f} s'
    )
  return status


def _newest(checkpoints):
  """The checkpoint of the last finished epoch, None before the first.

  The best epoch is saved before the latest, so that one is ahead where a run
  was killed between the two.
  """
  latest, best = (checkpoints.epoch(kind) for kind in ('latest', 'best'))
  if best == (latest or 0) + 1:
    return 'best'
  return None if latest is None else 'latest'


def _new_status(run, state):
  """What the checkpoints remember beside the state, as JSON values."""
  return {
    'identity': run.identity,
    'epochs': 0,
    'best_epoch': None,
    'best_value': None,
    'history': [],
    'floors': {},
    'floors_left_out': {},
    'commit': provenance.commit(),
    'parameters': train.num_parameters(state.params),
    'train_step_flops': 0.0,
  }


def _add_floors(run, status):
  """Ranks the systems of `eval.compare` that have not been ranked."""
  for name in run.floors:
    if name in status['floors'] or name in status['floors_left_out']:
      continue
    say(f'ranking {name} for comparison')
    try:
      status['floors'][name] = prepared.run_floor(run, name)
    except TooLargeError as error:
      status['floors_left_out'][name] = str(error)
      say(f'{name} is left out: {error}')


def _finished(run, status):
  if run.system.feed == 'none':
    return status['epochs'] > 0
  if status['epochs'] >= run.config.train.num_epochs:
    return True
  since_best = status['epochs'] - (status['best_epoch'] or 0)
  return since_best >= run.config.train.patience


def report(
  run: PreparedRun, checkpoints: Checkpoints, folder: run_folder.RunFolder
) -> dict[str, Any]:
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
      'allowed: the folder of a run with --mode=train'
    )
  status = checkpoints.status('best')
  identity.check(
    status['identity'], run.identity, str(folder.path), resume=False
  )
  if any(
    status['identity']['eval'][field] != run.identity['eval'][field]
    for field in _PROTOCOL
  ):
    status.update(floors={}, floors_left_out={})
  _add_floors(run, status)
  latest = checkpoints.status('latest')
  state = checkpoints.restore('best', prepared.initial_state(run))
  ranked = prepared.rank_splits(run, state, ('validation', 'test'))
  results = results_lib.collect(run, status, latest, state, ranked)
  users = run.log.users[run.log.train_end :]
  folder.write_arrays(
    'ranks.npz',
    {
      'validation': ranked['validation'][0].astype(np.float32),
      'test': ranked['test'][0].astype(np.float32),
      'validation_users': users[: len(ranked['validation'][0])],
      'test_users': users[len(ranked['validation'][0]) :],
    },
  )
  folder.write_json('results.json', results)
  results_lib.show(run, results)
  return results


def train_mode(config: ml_collections.ConfigDict, workdir: str) -> None:
  """`--mode=train`: data, facets, training, test."""
  folder = run_folder.RunFolder(workdir)
  folder.check()
  run = prepared.prepare(config)
  processes.check_shared(folder.path)
  began = time.perf_counter()
  with folder.held(), Checkpoints(folder.path) as checkpoints:
    fit(run, checkpoints, folder)
    if config.eval.test:
      report(run, checkpoints, folder)
  wrote = 'results.json' if config.eval.test else 'metrics.jsonl'
  say(f'{time.perf_counter() - began:.1f} s; wrote {folder.path / wrote}')


def evaluate_mode(config: ml_collections.ConfigDict, workdir: str) -> None:
  """`--mode=evaluate`: restores the best epoch, validates and tests."""
  folder = run_folder.RunFolder(workdir)
  folder.check()
  if not (folder.path / 'checkpoints').is_dir():
    raise InputError(
      f'--workdir: {workdir!r} has no checkpoint to evaluate; allowed: the '
      'folder of a run with --mode=train'
    )
  run = prepared.prepare(config)
  with folder.held(), Checkpoints(folder.path) as checkpoints:
    report(run, checkpoints, folder)


def facets_mode(
  config: ml_collections.ConfigDict,
  dry_run: bool = False,
  user: str | None = None,
) -> None:
  """`--mode=facets`: prepares the data and precomputes facets, no more.

  Args:
    config: the configuration.
    dry_run: say what that would take instead, and spend nothing.
    user: print the facets of this user instead, which must be there.
  """
  log = loading.load(config.data, say)
  folder = loading.data_folder(config.data)
  if user is not None:
    user_report.show(config.facets, log, folder, user, say)
  elif dry_run:
    facet_bank.plan(config.facets, log, folder, say)
  else:
    prepared.keep_compiled(config)
    _, facets = facet_bank.build(config.facets, log, folder, say)
    facet_bank.item_text(config.facets.encoder, log, folder)
    say(f'facets are ready: {facets}')
