"""Progress of long work: a bar on a terminal, a line a minute elsewhere."""

import sys
import time

import jax
import tqdm

from dynllm_jax import compiling

_LINE_SECONDS = 60  # between two lines of progress off a terminal


def is_writer() -> bool:
  """Whether this process is the one that reports and writes files.

  Asking for the process's number would start the devices; a process alone does
  not ask.
  """
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(line: str) -> None:
  """Prints a line about the run at once, in process 0 alone."""
  if is_writer():
    print(line, flush=True)


class Progress:
  """How far a piece of work is: a bar on a terminal, a line a minute elsewhere.

  What is compiled meanwhile counts for no rate, and not for what is left.

  Args:
    what: the work, in a word or two.
    total: how many things are to be done.
    unit: one of them, in a word.
  """

  def __init__(self, what: str, total: int, unit: str = 'event') -> None:
    self._bar = tqdm.tqdm(
      total=total,
      desc=what,
      unit=unit,
      unit_scale=True,
      leave=False,
      disable=not sys.stderr.isatty() or not is_writer(),
    )
    self._what, self._total, self._done = what, total, 0
    self._unit = unit
    self._began = self._last_line = time.perf_counter()
    self._compiled_before = self._compiled = compiling.seconds()

  def __call__(self, count: int, loss: float | None = None) -> None:
    """Adds finished things and, in training, shows their mean loss."""
    self._done += count
    if loss is not None:
      self._bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
    if not self._bar.disable:
      compiled = compiling.seconds() - self._compiled
      self._bar.start_t += compiled
      self._bar.last_print_t += compiled
    self._compiled = compiling.seconds()
    self._bar.update(count)

    now = time.perf_counter()
    if self._bar.disable and now - self._last_line >= _LINE_SECONDS:
      self._last_line = now
      rate = self._done / self._seconds(now)
      left = (self._total - self._done) / rate
      note = '' if loss is None else f', loss {loss:.4f}'
      places = 0 if rate >= 10 else 2
      say(
        f'{self._what}: {self._done:,} of {self._total:,} {self._unit}s, '
        f'{rate:,.{places}f} {self._unit}s/s, {left:,.0f} s left{note}'
      )

  def close(self) -> float:
    """Ends the bar; returns the seconds since the start, compiling left out."""
    self._bar.close()
    return self._seconds(time.perf_counter())

  def _seconds(self, now: float) -> float:
    compiled = compiling.seconds() - self._compiled_before
    return max(now - self._began - compiled, 1e-9)
