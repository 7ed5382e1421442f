"""Settings and options of all tests; `tests/testing/` makes their data."""

import gc
import os
import pathlib
import platform
import tempfile

# Workers, and the processes that tests start, take from one another what is
# compiled already. JAX reads this when it is imported.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix='compiled')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import hypothesis
import jax
import jax.monitoring
import pytest

from dynllm_jax.runs import jax_settings

# Helpers' assertions say what differs, as those of test modules do.
pytest.register_assert_rewrite('tests.testing')

# The first example of a property compiles, which no deadline allows for.
hypothesis.settings.register_profile('tests', deadline=None)
hypothesis.settings.register_profile('quick', deadline=None, max_examples=25)

# Accelerators round the factors of a product unless they are told not to, and
# the tests compare with plain Python.
jax.config.update('jax_default_matmul_precision', 'highest')


# Linux allows a process 65,530 mappings, every compiled program takes several,
# and past the limit the compiler crashes. To count them takes milliseconds.
_MAPPINGS = pathlib.Path('/proc/self/maps')
_MAX_MAPPINGS = 30_000
_PROGRAMS_BETWEEN = 100
_COMPILE = '/jax/core/compile/backend_compile_duration'
_compiled_since = []


@pytest.fixture(autouse=True)
def few_compiled_programs():
  """Forgets compiled programs long before a process has too many."""
  yield
  if len(_compiled_since) < _PROGRAMS_BETWEEN or not _MAPPINGS.exists():
    return
  _compiled_since.clear()
  if _MAPPINGS.read_bytes().count(b'\n') > _MAX_MAPPINGS:
    jax.clear_caches()


def _count_compiled(event, duration_secs, **about):
  del duration_secs, about
  if event == _COMPILE:
    _compiled_since.append(event)


_FLAGS = ['--xla_backend_optimization_level=0']
# The older emitters of fused loops: a step of dynllm+text+counts takes 8 s of
# processor time to compile, not 15. They round a product and a sum at once
# where both are in one loop, and programs that should agree bit for bit would
# not; AVX has no instruction for that, unlike its successors. An unknown flag
# would end the process: these are for the version that was tried.
if jax.__version__.startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
  if platform.machine() == 'x86_64':
    _FLAGS.append('--xla_cpu_max_isa=AVX')


def pytest_configure(config):
  """Chooses how many examples there are, and how XLA compiles.

  Most of the time goes into compiling. XLA reads its flags when the first array
  is made, which is after this; processes that tests start inherit them.
  """
  gc.set_threshold(*jax_settings.COLLECT_EVERY)
  jax.monitoring.register_event_duration_secs_listener(_count_compiled)
  quick = config.getoption('quick')
  hypothesis.settings.load_profile('quick' if quick else 'tests')
  os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])


def pytest_addoption(parser):
  parser.addoption(
    '--all-combinations',
    action='store_true',
    help='every option of every system, not each system once',
  )
  parser.addoption(
    '--quick',
    action='store_true',
    help='one system of each kind, few examples, no test marked as slow',
  )


def pytest_collection_modifyitems(config, items):
  """Leaves out the slow tests of a quick run."""
  if not config.getoption('quick'):
    return
  slow = [item for item in items if item.get_closest_marker('slow')]
  config.hook.pytest_deselected(items=slow)
  items[:] = [item for item in items if item not in slow]
