"""Every field of a configuration is checked before any work is done.

A bad value that shows after data were read, or facets were paid for, is worth
nothing to anyone. What is wrong is said at once, a line a field; the rules are
in the modules that read the fields.
"""

from collections.abc import Callable
import types

import jax
import ml_collections

from dynllm_jax import checks
from dynllm_jax import config as config_lib
from dynllm_jax import plugins
from dynllm_jax.datasets import loading
from dynllm_jax.engine import precision
from dynllm_jax.engine import ranking
from dynllm_jax.engine import resident_texts
from dynllm_jax.engine import train
from dynllm_jax.facets import language_model
from dynllm_jax.facets import windows
from dynllm_jax.parallel import device_mesh
from dynllm_jax.parallel import processes
from dynllm_jax.text import endpoint
from dynllm_jax.text import pooling
from dynllm_jax.types import InputError
from dynllm_jax.types import System


def check(config: ml_collections.ConfigDict, files: bool = True) -> None:
  """Checks all fields, and that the files which they name are there.

  Args:
    config: the whole configuration.
    files: whether the log's files are wanted; a log that is prepared outlives
      them.

  Raises:
    InputError: naming the field that is wrong; `checks.Faults` for several.
  """
  # Without all fields nothing else can be asked.
  config_lib.check_values(config)
  checks.gather(
    [
      lambda: (loading.check_files if files else loading.check)(config.data),
      lambda: check_facets(config.facets),
      lambda: _build(config),
      lambda: train.check(config.train),
      lambda: precision.check(config.train, jax.devices()[0].platform),
      lambda: ranking.check(config.eval),
      *(
        lambda name=name: build_floor(name)  # type: ignore[misc]
        for name in config.eval.compare
      ),
      lambda: processes.check_timeout(config.mesh.start_timeout_s),
      lambda: device_mesh.make_mesh(config),
    ]
  )


def check_facets(facets_config: ml_collections.ConfigDict) -> None:
  """Checks `config.facets`, fields that the chosen modules do not read as well.

  Raises:
    InputError: as `check`.
  """
  writer, encoder = facets_config.writer, facets_config.encoder

  def section(name: str, fields: ml_collections.ConfigDict, *rules) -> Callable:
    return lambda: checks.check(f'config.facets{name}', fields, rules)

  def chosen(kind: plugins.Kind, fields: ml_collections.ConfigDict) -> Callable:
    field = f'config.facets.{kind.word}.name'
    return lambda: own_check(plugins.load(kind, fields.name, field), fields)

  checks.gather(
    [
      section('', facets_config, windows.RULE, resident_texts.RULE),
      section('.writer', writer, *language_model.RULES, *endpoint.RULES),
      section('.encoder', encoder, *pooling.RULES, *endpoint.RULES),
      chosen(plugins.WRITERS, writer),
      chosen(plugins.ENCODERS, encoder),
    ]
  )


def own_check(
  module: types.ModuleType, fields: ml_collections.ConfigDict
) -> None:
  """Calls the check that a writer or an encoder may have."""
  if hasattr(module, 'check'):
    module.check(fields)


def _build(config: ml_collections.ConfigDict) -> System:
  """The system, whose `build` checks `config.model`."""
  module = config_lib.system_module(config.model.name)
  return module.build(config.model)


def build_floor(name: str) -> tuple[System, ml_collections.ConfigDict]:
  """A system of `eval.compare` at its defaults, and how it is trained.

  Raises:
    InputError: if there is no such system, or it needs much training.
  """
  module = plugins.load(plugins.SYSTEMS, name, 'config.eval.compare')
  config = config_lib.default(name)
  system = module.build(config.model)
  if system.feed != 'none' and not system.learns_quickly:
    raise InputError(
      f'config.eval.compare: {name!r} needs training; allowed: systems that '
      'count and need none, or little (blend)'
    )
  return system, config.train
