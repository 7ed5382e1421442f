"""What the commands of this folder share."""

from collections.abc import Callable
import sys

from dynllm_jax.types import InputError


def exit_status(work: Callable[[], None]) -> int:
  """Does a command's work and returns its exit status.

  Args:
    work: what the command does.

  Returns:
    0; 2 after bad input, of which stderr has one line, `error: ...`.
  """
  try:
    work()
  except InputError as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    return 2
  return 0
