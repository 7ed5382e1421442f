"""What a program calls instead of the command: load, train, evaluate.

They print the same lines as the command does. Of several processes each calls
the same function, after `parallel.processes.start`.
"""

from typing import Any

import ml_collections

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import loading
from dynllm_jax.datasets import tables
from dynllm_jax.live import going_on
from dynllm_jax.live import grown_log
from dynllm_jax.progress import say
from dynllm_jax.runs import jax_settings
from dynllm_jax.runs import modes
from dynllm_jax.types import EventLog


def load(
  config: ml_collections.ConfigDict, events: Any = None, items: Any = None
) -> EventLog:
  """The prepared log of a configuration (SPEC 2).

  Args:
    config: of `dynllm_jax.config.default`; its section `data` is read.
    events, items: tables of pandas, polars or Arrow in place of the files that
      `config.data` names; None for those files.

  Raises:
    InputError: for a field, a file or a row that is not allowed.
  """
  config_lib.check_values(config)
  config = tables.with_tables(config, events=events, items=items)
  return loading.load(config.data, say)


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  init_from: str = '',
  journal: str = '',
  events: Any = None,
  items: Any = None,
) -> dict[str, Any]:
  """Trains to early stopping, then ranks validation and test.

  Args:
    config: of `dynllm_jax.config.default`.
    workdir: the run folder, for checkpoints and reports; if it holds a run of
      the same configuration, that run goes on.
    init_from: the folder of an earlier run; training starts from its
      parameters, on the log and all that its journal has.
    journal: of that run, a file or a URL; '' for the one in its folder.
    events, items: tables of pandas, polars or Arrow in place of the files that
      `config.data` names; None for those files.

  Returns:
    The content of `results.json`; empty where `config.eval.test` is off.

  Raises:
    InputError: for whatever is wrong with configuration, data or run folder.
  """
  config_lib.check_values(config)
  config = tables.with_tables(config, events=events, items=items)
  with jax_settings.pinned():
    if init_from:
      return going_on.train_mode(config, workdir, init_from, journal)
    return modes.train_mode(config, workdir)


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: str,
  events: Any = None,
  items: Any = None,
) -> dict[str, Any]:
  """Restores the best epoch of a run, and ranks validation and test again.

  Args:
    config: as the run had it; fields of `train` and `eval` may differ.
    workdir: the folder of a run that `train` has made.
    events, items: tables of pandas, polars or Arrow in place of the files that
      `config.data` names; None for those files.

  Returns:
    The content of `results.json`.

  Raises:
    InputError: for whatever is wrong with configuration, data or run folder.
  """
  config_lib.check_values(config)
  config = tables.with_tables(config, events=events, items=items)
  with jax_settings.pinned():
    return grown_log.evaluate_mode(config, workdir)
