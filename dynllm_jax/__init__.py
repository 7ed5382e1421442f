"""DynLLM: dynamic graph recommendation with large language models, in JAX.

    import dynllm_jax

    config = dynllm_jax.get_config('event_log')
    config.data.events = 'events.csv'
    log = dynllm_jax.load(config)
    results = dynllm_jax.train(config, 'runs/shop')

A name is imported when it is first asked for, so that importing the package
imports no library, not even JAX.
"""

import importlib
import os
from typing import Any

# XLA would call a compilation slow, and ask for a bug report, on the standard
# error; what goes wrong in it reaches Python as an exception. It reads this
# when JAX is imported.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

__version__ = '0.1.0'

# The modules that define the public names.
_MODULES = {
  'Recommender': 'dynllm_jax.live.recommender',
  'evaluate': 'dynllm_jax.live.library',
  'get_config': 'dynllm_jax.runs.config_files',
  'InputError': 'dynllm_jax.types',
  'load': 'dynllm_jax.live.library',
  'train': 'dynllm_jax.live.library',
}
__all__ = [  # noqa: F822 (lazy)
  'evaluate',
  'get_config',
  'InputError',
  'load',
  'Recommender',
  'train',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_MODULES})
