"""What one process of a study does: a setting on a log, seed after seed.

Beside side_by_side.py, which has the flags, so that tests can import this.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dynllm_jax import progress
from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.engine import train
from dynllm_jax.parallel import device_mesh
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import prepared
from dynllm_jax.runs import provenance
from dynllm_jax.runs.status import Status
from dynllm_jax.storage import atomic
from dynllm_jax.types import InputError
from dynllm_jax.types import TrainState
from experiments import rank_arrays
from experiments.result_rows import Log


@dataclasses.dataclass(frozen=True)
class Job:
  """One setting on one log.

  Attributes:
    label: of the setting.
    log: name of the log.
    data: the log's files, and the config that is used.
    system: its name, with or without a variant.
    fields: values by the names of fields.
    seeds: of its runs.
    platform: JAX's, '' for its own choice.
  """

  label: str
  log: str
  data: Log
  system: str
  fields: dict[str, Any]
  seeds: tuple[int, ...]
  platform: str = ''

  def key(self, seed: int) -> str:
    """Names a run: a short hash of all that it follows from."""
    text = json.dumps(
      [self.log, self.data.name, self.system, sorted(self.fields.items()), seed]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def config(self, folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The whole configuration, but for the seed.

    Args:
      folder: of prepared logs.

    Raises:
      InputError: naming a field that is wrong.
    """
    config = self.data.config_with_data(self.system, str(folder))
    config.eval.compare = ()
    for name, value in self.fields.items():
      value = tuple(value) if isinstance(value, list) else value
      try:
        config.update_from_flattened_dict({name: value})
      except (KeyError, TypeError, ValueError) as error:
        raise InputError(
          f'--study: {name}: {value!r} is not allowed for {self.system}; '
          f'allowed: a field of its configuration, of the right type ({error})'
        ) from error
    return config


def jobs_of(study: dict[str, Any]) -> list[Job]:
  """The jobs of a study, in the order of its settings.

  Raises:
    InputError: if something is missing, or two settings of a log have one
      label.
  """
  for name in ('logs', 'settings'):
    if not study.get(name):
      raise InputError(f'--study: {name!r} is missing; allowed: one at least')
  common = study.get('fields', {})
  jobs = []
  for setting in study['settings']:
    for name in setting.get('logs', study['logs']):
      if name not in study['logs']:
        raise InputError(
          f'--study: log {name!r} of {setting.get("label")!r}; allowed: '
          f'{", ".join(study["logs"])}'
        )
      about = study['logs'][name]
      jobs.append(
        Job(
          label=setting.get('label', setting['system']),
          log=name,
          data=Log(
            'side_by_side',
            study.get('config', 'event_log'),
            about.get('events', ''),
            about.get('items', ''),
          ),
          system=setting['system'],
          fields={
            **about.get('fields', {}),
            **common,
            **setting.get('fields', {}),
          },
          seeds=tuple(setting.get('seeds', (0, 1, 2))),
          platform=setting.get('platform', ''),
        )
      )

  counts = collections.Counter((job.log, job.label) for job in jobs)
  (log, label), count = counts.most_common(1)[0]
  if count > 1:
    raise InputError(
      f'--study: {count} settings of {log} are labeled {label!r}; allowed: '
      'labels that differ'
    )
  return jobs


def work(job: Job, workdir: pathlib.Path, done: set[str]) -> None:
  """Does a job: trains and ranks all seeds that are not `done`.

  Args:
    job: the job.
    workdir: of the study.
    done: keys of runs that need not be made.
  """
  began = time.perf_counter()
  jax_settings.pin()
  config = job.config(workdir / 'data')
  run = prepared.prepare(config)

  def first_state(seed: jax.Array, inputs: Any) -> TrainState:
    return train.init_state(run.trainer, seed, inputs, run.train_plan.capacity)

  for seed in job.seeds:
    if job.key(seed) in done:
      continue
    # One function, to which the seed is an argument: it is compiled once.
    state = device_mesh.compute_on_mesh(
      run.mesh, first_state, np.int64(seed), run.inputs
    )
    found, ranks = _train_and_rank(run, state)
    record = {
      'key': job.key(seed),
      'log': job.log,
      'label': job.label,
      'system': job.system,
      'config': job.data.name,
      'fields': job.fields,
      'seed': seed,
      **found,
      'seconds_since_start': time.perf_counter() - began,
      'floor': run.system.feed == 'none' or run.system.learns_quickly,
      'source': run.log.source,
      'simulated': run.log.simulated,
      'fingerprint': run.log.fingerprint,
      'split': [
        run.log.train_end,
        run.log.validation_end - run.log.train_end,
        run.log.num_events - run.log.validation_end,
      ],
      'filter_seen': ranking.make_ranking(config, run.log).filter_seen,
      'facets': {k: run.facets[k] for k in ('writer', 'encoder')},
      'machine': provenance.machine(),
    }

    # The record comes last: where it is, its ranks were written.
    arrays = {
      **{split: rank_arrays.doubled(values) for split, values in ranks.items()},
      'users': run.log.users[run.log.train_end :].astype(np.int32),
    }
    folder = workdir / 'runs'
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(folder / f'{record["key"]}.npz') as file:
      np.savez_compressed(file, **arrays)
    atomic.write_atomically(
      folder / f'{record["key"]}.json', json.dumps(record) + '\n'
    )
    progress.say(f'finished {record["key"]}')


def _train_and_rank(
  run: prepared.PreparedRun, state: TrainState
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Trains, and ranks by the epoch that is best on validation.

  Args:
    run: the run; its seed is not read.
    state: the first one; its buffers are donated.

  Returns:
    What a record says of it, and the ranks of the splits that were ranked.
  """
  config, began = run.config, time.perf_counter()
  status = Status(
    identity=run.identity,
    commit=provenance.commit(),
    parameters=train.num_parameters(state.params),
  )
  ks = sorted({*config.eval.ks, 10})
  best, chosen = state, np.array([])
  for _ in range(prepared.num_epochs(run)):
    state, record = prepared.train_one_epoch(run, state)
    ranks, seconds = prepared.rank_splits(
      run, state, ('validation',), config.eval.validation_events
    )['validation']
    found = metrics.summary(ranks, ks)
    if status.add_epoch(record, found, seconds):
      # The next epoch overwrites all of the state but copies.
      parts = {
        name: getattr(state, name) for name in ('params', 'memory', 'pending')
      }
      best, chosen = state.replace(**jax.tree.map(jnp.copy, parts)), ranks
    progress.say(f'epoch {status.epochs}: recall@10 {found["recall@10"]:.4f}')
    if status.epochs - (status.best_epoch or 0) >= config.train.patience:
      break

  if config.eval.test or config.eval.validation_events:
    splits = ('validation', 'test') if config.eval.test else ('validation',)
    ranked = {
      split: ranks
      for split, (ranks, _) in prepared.rank_splits(run, best, splits).items()
    }
  else:
    ranked = {'validation': chosen}
  return {
    **{split: metrics.summary(ranks, ks) for split, ranks in ranked.items()},
    'history': status.history,
    'best_epoch': status.best_epoch,
    'epochs': status.epochs,
    'seconds': time.perf_counter() - began,
    'parameters': status.parameters,
    'commit': status.commit,
  }, ranked
