"""How exact the products of a training step are: `train.precision` (SPEC 4.6).

A product of float32 numbers may round its factors first, which is what tensor
cores and a TPU's matrix unit are fast at; sums are float32 in any case. JAX's
own choice differs by platform, so a run may name one.
"""

import contextlib

import jax
import ml_collections

from dynllm_jax import checks
from dynllm_jax.checks import Rule

# What JAX is told, by the field's value; None leaves its own choice.
_TOLD = {
  'default': None,
  'float32': 'float32',
  'tf32': 'TF32_TF32_F32',
  'bf16': 'BF16_BF16_F32',
}
# XLA's CPU backend takes no notice of a precision, and a TPU has no tf32.
_ON = {
  'cpu': ('default', 'float32'),
  'tpu': ('default', 'float32', 'bf16'),
  'gpu': tuple(_TOLD),
}

RULE = checks.one_of('precision', _TOLD)


def check(train_config: ml_collections.ConfigDict, platform: str) -> None:
  """Checks that a platform can compute as `config.train.precision` asks.

  Args:
    train_config: `config.train`.
    platform: of the devices, as JAX names it: 'cpu', 'tpu', 'gpu', or another.

  Raises:
    InputError: if it cannot.
  """
  here = _ON.get(platform, ('default',))
  rule = Rule(
    'precision',
    f'{", ".join(here)} on a device of kind {platform}',
    lambda name: name in here or name not in _TOLD,  # RULE speaks of those
  )
  checks.check('config.train', train_config, [rule])


def products(name: str) -> contextlib.AbstractContextManager:
  """A context in which products are traced with a precision.

  Those that name one themselves, as those of counts do, keep it.

  Args:
    name: `config.train.precision`.
  """
  told = _TOLD[name]
  return (
    jax.default_matmul_precision(told) if told else contextlib.nullcontext()
  )
