"""`--mode=tune`: a system and its fields, chosen on validation (SPEC 5).

Optuna proposes a system of `config.TUNED`, its variant and a few of its fields;
a trial trains it in a run folder of its own and is worth its best recall@10 on
validation. No trial sees the test split. Trials are kept in the run folder, so
that a later call goes on where this one was stopped, also within a trial.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import hashlib
import io
import json
import logging
import pathlib
import shlex
import time
from typing import Any

import jax
import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.progress import say
from dynllm_jax.runs import config_check
from dynllm_jax.runs import modes
from dynllm_jax.runs import prepared
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.results import table
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.runs.status import WATCHED
from dynllm_jax.storage import bucket
from dynllm_jax.types import InputError
from dynllm_jax.types import TooLargeError

_JOURNAL = 'tuning.journal'
_SHOWN = 10  # trials of the printed table
# A field that a system has is tuned over these: a range, on a logarithmic
# scale, or values to choose from. Fields of `train` are for systems that learn.
_SPACE: dict[str, tuple[float, float] | list[Any]] = {
  'train.learning_rate': (3e-4, 1e-2),
  'train.loss': ['bpr', 'softmax'],
  'model.dim': [64, 128],
  'model.dropout': [0.0, 0.1, 0.3],
  'model.num_neighbors': [10, 20, 50],
  'model.half_life_days': (3.0, 300.0),
  'model.depth': [5, 10, 20, 50],
}
_NEGATIVES_OF_SOFTMAX = 128

# What gives the configuration of a system, as a config file's `get_config`.
GetConfig = Callable[[str], ml_collections.ConfigDict]


def tune(
  config: ml_collections.ConfigDict,
  workdir: str,
  minutes: float,
  get_config: GetConfig,
  config_file: str,
  systems: Sequence[str] = config_lib.TUNED,
  max_trials: int | None = None,
) -> dict[str, Any]:
  """Tries systems and fields until the time is up; says what was best.

  The trial under way when the time is up ends with its epoch.

  Args:
    config: with data, facets and evaluation as they are wanted; fields that
      differ from what `get_config` sets hold for every trial.
    workdir: where trials are kept. One that has some goes on.
    minutes: how long this call may take.
    get_config: gives the configuration of `SYSTEM` or `SYSTEM+VARIANT`.
    config_file: of `get_config`, for the command that runs the winner.
    systems: that are tried.
    max_trials: how many this call may run, None for as many as there is time
      for.

  Returns:
    `system`, `fields`, `value` (recall@10 on validation), `command`, `trials`.

  Raises:
    InputError: for whatever is wrong with configuration, data or folder.
  """
  try:
    import optuna
  except ImportError as error:
    raise InputError(
      '--mode=tune needs optuna; allowed: pip install '
      f"'dynllm_jax[tune]' ({error})"
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  logging.getLogger('optuna').setLevel(logging.ERROR)

  if bucket.is_url(workdir):
    raise InputError(
      f'--workdir: {workdir!r} is in a bucket; allowed with --mode=tune: a '
      'local folder'
    )
  config_check.check(config)
  folder = RunFolder(workdir)
  folder.check()
  log = loading.load(config.data, say)
  tuner = _Tuner(config, folder.path, get_config, minutes)
  with folder.held():
    study = _open_study(optuna, folder.path, config, log.fingerprint, systems)
    _queue(optuna, study, tuner, systems)
    study.optimize(
      tuner.run,
      n_trials=max_trials,
      timeout=60 * minutes,
      catch=(TooLargeError, InputError),
      callbacks=[_tell],
    )
    return _winner(optuna, study, tuner, config_file)


class _Tuner:
  """Runs trials.

  Args:
    config, get_config, minutes: as in `tune`.
    folder: where trials have their folders.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    get_config: GetConfig,
    minutes: float,
  ) -> None:
    self._config, self._get_config = config, get_config
    self.folder = folder
    self._prepared = False
    self._end = time.monotonic() + 60 * minutes
    own = get_config(prepared.system_name(config))
    theirs = dict(config_lib.flatten(own.to_dict()))
    # What the command line has set holds for every system that has the field.
    self.overrides = {
      name: value
      for name, value in config_lib.flatten(config.to_dict())
      if name != 'model.name' and theirs.get(name) != value
    }

  def make_config(
    self, system: str, fields: dict[str, Any]
  ) -> ml_collections.ConfigDict:
    """The configuration of a system with the fields of a trial."""
    config = self._get_config(system)
    known = dict(config_lib.flatten(config.to_dict()))
    with config.unlocked():
      config.data = self._config.data.copy_and_resolve_references()
    _set(config, {n: v for n, v in self.overrides.items() if n in known})
    _set(config, fields)
    if fields.get('train.loss') == 'softmax':
      config.train.num_negatives = _NEGATIVES_OF_SOFTMAX
    return config

  def run(self, trial: Any) -> float:
    """The best validation value of a trial's run."""
    names = trial.study.user_attrs['systems']
    system = trial.suggest_categorical('system', names)
    fields = {
      field: trial.suggest_float(f'{system}: {field}', *values, log=True)
      if isinstance(values, tuple)
      else trial.suggest_categorical(f'{system}: {field}', values)
      for field, (values, _) in self.space(system).items()
    }
    try:
      return self._train(trial, system, fields)
    except (TooLargeError, InputError) as error:
      trial.set_user_attr('failed', str(error))
      say(f'tune: {system} is left out: {error}')
      raise

  def _train(self, trial: Any, system: str, fields: dict[str, Any]) -> float:
    """Trains a trial's run, or goes on with it."""
    config = self.make_config(system, fields)
    config.eval.test = False
    config.eval.compare = ()
    key = json.dumps([system, fields], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = RunFolder(str(self.folder / 'trials' / name))
    trial.set_user_attr('folder', name)
    say(f'\ntune: trial {trial.number + 1}: {system} {_words(fields)}')

    # What data and facets are has been said before.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet if self._prepared else contextlib.nullcontext():
      run = prepared.prepare(config)
    self._prepared = True
    with folder.held(), Checkpoints(folder.path) as checkpoints:
      status = modes.fit(run, checkpoints, folder, go_on=self._go_on)
    jax.clear_caches()  # Every trial has programs of its own.
    assert status.best_value is not None
    trial.set_user_attr('epochs', status.epochs)
    return status.best_value

  def _go_on(self, status: Status) -> bool:
    """Whether there is time for another epoch."""
    del status
    return time.monotonic() < self._end

  def space(self, system: str) -> dict[str, tuple[Any, Any]]:
    """What is tuned of a system: values and the default, by field."""
    config = self._get_config(system)
    known = dict(config_lib.flatten(config.to_dict()))
    module = config_lib.system_module(config.model.name)
    learns = module.build(config.model).feed != 'none'
    prescribed = config_lib.own_train(config.model)
    space: dict[str, tuple[Any, Any]] = {}
    for field, values in _SPACE.items():
      section, _, name = field.partition('.')
      if (
        field not in known
        or field in self.overrides
        or (section == 'train' and (not learns or name in prescribed))
      ):
        continue
      usual = known[field]
      if isinstance(values, tuple):
        space[field] = values, min(max(usual, values[0]), values[1])
      else:
        space[field] = sorted({*values, usual}), usual
    return space


def _open_study(
  optuna: Any,
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  fingerprint: str,
  systems: Sequence[str],
) -> Any:
  """The study that the folder holds, or a new one.

  Raises:
    InputError: if it is of another log or of other settings.
  """
  backend = optuna.storages.journal.JournalFileBackend(str(folder / _JOURNAL))
  study = optuna.create_study(
    storage=optuna.storages.JournalStorage(backend),
    study_name='tuning',
    direction='maximize',
    load_if_exists=True,
    sampler=optuna.samplers.TPESampler(
      seed=config.seed, multivariate=True, group=True
    ),
  )

  fixed = json.loads(config.to_json())
  fixed = {name: fixed[name] for name in ('facets', 'eval', 'seed')}
  about = json.loads(json.dumps([fixed, fingerprint, list(systems)]))
  stored = study.user_attrs.get('about')
  if stored is None:
    study.set_user_attr('about', about)
    study.set_user_attr('systems', list(systems))
  elif stored != about:
    raise InputError(
      f'--workdir: {str(folder)!r} has trials of another log, of other systems '
      'or settings; allowed: the same, or another folder'
    )
  return study


def _queue(
  optuna: Any, study: Any, tuner: _Tuner, systems: Sequence[str]
) -> None:
  """Plans what was cut off, then each system that was not tried yet.

  A system is tried first as it is. The run folder of what was cut off follows
  from its fields, so that it goes on there.
  """
  states = optuna.trial.TrialState
  kept = [
    trial.params or trial.system_attrs.get('fixed_params', {})
    for trial in study.trials
    if trial.state in (states.COMPLETE, states.WAITING)
    or 'failed' in trial.user_attrs
  ]
  for trial in study.trials:
    if trial.state == states.RUNNING:
      study.tell(trial.number, state=states.FAIL)
    elif trial.state != states.FAIL:
      continue
    if trial.params and trial.params not in kept:
      study.enqueue_trial(trial.params)
      kept.append(trial.params)

  tried = {params.get('system') for params in kept}
  for system in systems:
    if system not in tried:
      usual = {
        f'{system}: {field}': value
        for field, (_, value) in tuner.space(system).items()
      }
      study.enqueue_trial({'system': system, **usual})


def _tell(study: Any, trial: Any) -> None:
  """Says how a trial ended."""
  if trial.value is None:
    say(f'tune: trial {trial.number + 1} failed')
    return
  best = study.best_trial
  say(
    f'tune: trial {trial.number + 1}: validation {WATCHED} {trial.value:.4f}; '
    f'best is {best.value:.4f} of trial {best.number + 1}, '
    f'{best.params["system"]}'
  )


def _winner(
  optuna: Any, study: Any, tuner: _Tuner, config_file: str
) -> dict[str, Any]:
  """Says what was best and how to run it."""
  done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
  if not done:
    raise InputError(
      '--minutes: no trial has ended with a value; allowed: more of them, or a '
      'log that a system can be trained on'
    )
  done.sort(key=lambda trial: -trial.value)
  rows = {
    f'{trial.number + 1:>4} {trial.params["system"]}': {
      WATCHED: trial.value,
      'epochs': float(trial.user_attrs['epochs']),
    }
    for trial in done[:_SHOWN]
  }
  say(f'\nvalidation, {len(done)} trials, the best {len(rows)}')
  say(table(rows, [WATCHED, 'epochs']))

  best = done[0]
  system = best.params['system']
  fields = {
    name.partition(': ')[2]: value
    for name, value in best.params.items()
    if name != 'system'
  }
  command = _command(config_file, system, tuner, fields)
  say(f'\ntune: the winner is {system} {_words(fields)}; to run it:\n{command}')
  return {
    'system': system,
    'fields': fields,
    'value': best.value,
    'command': command,
    'trials': len(done),
  }


def _command(
  config_file: str, system: str, tuner: _Tuner, fields: dict[str, Any]
) -> str:
  """The command that trains and tests the winner."""
  config = tuner.make_config(system, fields)
  usual = dict(config_lib.flatten(tuner.make_config(system, {}).to_dict()))
  chosen = {
    name: value
    for name, value in config_lib.flatten(config.to_dict())
    if usual[name] != value
  }

  words = [
    'python',
    '-m',
    'dynllm_jax.main',
    f'--config={config_file}:{system}',
    f'--workdir={tuner.folder / "best"}',
    *(
      f'--config.{name}={value}'
      for name, value in {
        **{n: v for n, v in tuner.overrides.items() if n in usual},
        **chosen,
      }.items()
    ),
  ]
  return ' '.join(map(shlex.quote, words))


def _set(config: ml_collections.ConfigDict, fields: dict[str, Any]) -> None:
  """Sets fields by their full names."""
  for name, value in fields.items():
    if name.startswith('data.'):
      continue
    *above, last = name.split('.')
    section = config
    for part in above:
      section = section[part]
    section[last] = value


def _words(fields: dict[str, Any]) -> str:
  """Fields in words, for lines about a trial."""
  return ', '.join(
    f'{name} {value:.3g}' if isinstance(value, float) else f'{name} {value}'
    for name, value in fields.items()
  )
