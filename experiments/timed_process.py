"""Processes whose work is timed in turn with other work."""

from collections.abc import Mapping
from collections.abc import Sequence
import subprocess


class TimedProcess:
  """A command that does its next piece of work for each line that it reads.

  Attributes:
    about: the first line that it writes, once it is ready.

  Args:
    command: with its arguments.
    environment: of the process, this one's if it is None.

  Raises:
    RuntimeError: if it ends before it is ready.
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
    self.about = self._answer()

  def _answer(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'{self._process.args[:3]} ended with status {self._process.wait()}; '
        'its error is above'
      )
    return line.strip()

  def step(self) -> str:
    """Lets it do its next piece of work and returns its answer.

    Raises:
      RuntimeError: if it ends instead.
    """
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()
