"""Settings that all tests share; `helpers.py` beside it makes their data."""

import hypothesis
import jax

# The first example of a property compiles, which no deadline allows for.
hypothesis.settings.register_profile('tests', deadline=None)
hypothesis.settings.load_profile('tests')

# Accelerators round the factors of a product unless they are told not to, and
# the tests compare with plain Python.
jax.config.update('jax_default_matmul_precision', 'highest')


def pytest_addoption(parser):
  parser.addoption(
      '--all-combinations', action='store_true',
      help='every option of every system, not each system once')
