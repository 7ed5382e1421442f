"""What is compiled is counted once, and a long compilation is told."""

import re
import time

import jax
import jax.monitoring
import jax.numpy as jnp

from dynllm_jax import compiling
from dynllm_jax import progress
from tests.testing import ROOT

COMPILE = '/jax/core/compile/backend_compile_duration'


def test_compiling_counts_and_running_does_not():
  inner = jax.jit(lambda x: jnp.sin(x) * 2)
  outer = jax.jit(lambda x: inner(x) + inner(2 * x))
  before, began = compiling.seconds(), time.perf_counter()
  outer(jnp.ones(3)).block_until_ready()
  spent = compiling.seconds() - before
  # Traces within a trace count once.
  assert 0 < spent <= time.perf_counter() - began
  before = compiling.seconds()
  outer(jnp.ones(3)).block_until_ready()
  assert compiling.seconds() == before


def test_a_long_compilation_is_told_once(monkeypatch):
  monkeypatch.setattr(compiling, '_PATIENCE_SECONDS', 0.01)
  lines = []
  compiling.tell(lines.append)
  for name, seconds in (('quick', 0.0), ('slow', 0.2), ('slow', 0.2)):
    jax.monitoring.record_scalar(COMPILE, 0.0, fun_name=f'jit({name})')
    time.sleep(seconds)
    jax.monitoring.record_event_duration_secs(COMPILE, seconds)
  compiling.tell(lambda line: None)
  (line,) = lines
  assert 'compiling slow' in line and 'once' in line


def test_what_is_compiled_is_told_in_words():
  """A function of another name would be told by that name."""
  sources = ROOT.glob('dynllm_jax/*/*.py')
  text = '\n'.join(path.read_text(encoding='utf-8') for path in sources)
  for name in compiling._WHAT:
    assert re.search(rf'^def {name}\(', text, re.MULTILINE), name
  # What every epoch and every replay runs.
  jitted = re.findall(
    r'^@(?:functools\.partial\(\s*)?jax\.jit\b[^@]*?^def (\w+)\(',
    '\n'.join(
      (ROOT / 'dynllm_jax' / 'engine' / f'{name}.py').read_text('utf-8')
      for name in ('train', 'evaluate')
    ),
    re.DOTALL | re.MULTILINE,
  )
  assert len(jitted) > 2 and {*jitted} <= {*compiling._WHAT}


def test_progress_leaves_compiling_out(monkeypatch):
  told = []
  monkeypatch.setattr(progress, 'say', told.append)
  monkeypatch.setattr(progress, '_LINE_SECONDS', 0)
  bar = progress.Progress('training', 200)
  jax.monitoring.record_scalar(COMPILE, 0.0, fun_name='f')
  time.sleep(0.5)
  jax.monitoring.record_event_duration_secs(COMPILE, 0.5)
  time.sleep(0.05)
  bar(100)
  assert bar.close() < 0.4
  rate = float(
    told[0].split(' events/s')[0].rpartition(' ')[2].replace(',', '')
  )
  assert rate > 250  # of 200 a second if compiling were counted
