"""Processes whose work is timed in turn with other work."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import subprocess


class TimedProcess:
  """A command that does its next piece of work for each line that it reads.

  Args:
    command: with its arguments.
    environment: of the process, this one's if it is None.
  """

  def __init__(
    self, command: Sequence[str], environment: Mapping[str, str] | None = None
  ):
    self._process = subprocess.Popen(
      command,
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
    )

  @functools.cached_property
  def about(self) -> str:
    """The first line that it writes; waits until it is ready.

    Raises:
      RuntimeError: if it ends before.
    """
    return self._answer()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'{self._process.args[:3]} ended with status {self._process.wait()}; '
        'its error is above'
      )
    return line.strip()

  def step(self, what: str = 'go') -> str:
    """Lets it do its next piece of work and returns its answer.

    Args:
      what: the line that it reads.

    Raises:
      RuntimeError: if it ends instead.
    """
    _ = self.about  # It is ready once it has said so.
    self._process.stdin.write(f'{what}\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
