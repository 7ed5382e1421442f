"""What XLA compiles, and how long that takes: told once, counted always.

A first epoch may compile for longer than it computes. Who waits should know
why, and no speed should contain it. JAX reports when it traces, lowers and
compiles a function, and when it is done (`jax.monitoring`).
"""

from collections.abc import Callable
import re
import threading
import time

import jax.monitoring

_EVENTS = '/jax/core/compile/'
_COMPILE = _EVENTS + 'backend_compile_duration'
_PATIENCE_SECONDS = 2.0  # a compilation of less is not worth a line

# What the functions do that take long to compile, by their names.
_WHAT = {
  'init_state': 'the first parameters',
  '_before_first_event': 'the start of an epoch',
  'train_chunk': 'the training steps',
  'replay_chunk': 'the replay that ranks and updates',
  '_memory_for_replay': 'the start of a replay',
  '_empty_pending': 'the start of a replay',
  '_map_texts': 'what is made of all texts',
  '_tabulate': 'what is made of all nodes',
  'terms_of_block': 'the scores of the report',
}


class _Watch:
  """Follows the events of the process.

  Traces nest, so that only the outermost counts; each thread has its own.
  """

  def __init__(self) -> None:
    self.report: Callable[[str], None] = lambda line: None
    self.total = 0.0
    self._told: set[str] = set()
    self._lock = threading.Lock()
    self._local = threading.local()

  def begin(self, event: str, value: float, **about: str | int) -> None:
    """Takes the start of an event."""
    del value
    if not event.startswith(_EVENTS):
      return
    local = self._local
    local.depth = getattr(local, 'depth', 0) + 1
    if local.depth == 1:
      local.began = time.perf_counter()
    if event == _COMPILE:
      local.timer = threading.Timer(
        _PATIENCE_SECONDS, self._tell, [str(about.get('fun_name', ''))]
      )
      local.timer.daemon = True
      local.timer.start()

  def end(self, event: str, duration_secs: float, **about: str | int) -> None:
    """Takes the end of an event."""
    del duration_secs, about
    depth = getattr(self._local, 'depth', 0)
    if not event.startswith(_EVENTS) or not depth:
      return
    if event == _COMPILE:
      self._local.timer.cancel()
    self._local.depth = depth - 1
    if depth == 1:
      with self._lock:
        self.total += time.perf_counter() - self._local.began

  def _tell(self, function: str) -> None:
    name = re.sub(r'^jit\((.*)\)$|^jit_', r'\1', function)
    what = _WHAT.get(name, name)
    if what not in self._told:
      self._told.add(what)
      self.report(f'compiling {what}: once, later runs find it compiled')


_watch = _Watch()


def tell(report: Callable[[str], None]) -> None:
  """From now on says in a line when a compilation takes long, and of what.

  Args:
    report: takes the lines, from another thread.
  """
  _watch.report = report


def seconds() -> float:
  """Seconds that this process has traced and compiled so far.

  What other threads compile at the same time is added.
  """
  return _watch.total


jax.monitoring.register_scalar_listener(_watch.begin)
jax.monitoring.register_event_duration_secs_listener(_watch.end)
