"""Where the time of a run goes."""

from collections.abc import Iterator
import contextlib
import time

from dynllm_jax import compiling


class Stopwatch:
  """Adds up the seconds of a run's parts; compilation is a part of its own.

  A part that is begun within another one counts for itself alone.
  """

  def __init__(self) -> None:
    self._began = time.perf_counter()
    self._compiled_before = compiling.seconds()
    self._parts: dict[str, float] = {}

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts what is done inside as the part `name`."""
    began, compiled = time.perf_counter(), compiling.seconds()
    inside = sum(self._parts.values())
    self._parts.setdefault(name, 0.0)
    try:
      yield
    finally:
      spent = time.perf_counter() - began - (compiling.seconds() - compiled)
      self._parts[name] += spent - (sum(self._parts.values()) - inside)

  def seconds(self) -> dict[str, float]:
    """Seconds by part, in the order of their first start, then the rest."""
    parts = {
      **self._parts,
      'compiling': compiling.seconds() - self._compiled_before,
    }
    total = time.perf_counter() - self._began
    return {**parts, 'other': max(0.0, total - sum(parts.values()))}
