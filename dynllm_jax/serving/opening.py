"""The recommender that a command line asks for."""

from collections.abc import Iterator
import contextlib
import sys

from dynllm_jax.live import grown_log
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.runs.command_line import Command


@contextlib.contextmanager
def opened(
  command: Command, writes: bool, follow: bool = False
) -> Iterator[Recommender]:
  """The recommender of a run folder, up to date with its journal and its log.

  At the end of one that writes, a snapshot is, unless there is one already: the
  next start replays nothing then.

  What is said meanwhile goes to stderr: the standard output is for answers.

  Args:
    command: the command line.
    writes: whether events will be observed, so that no other process may.
    follow: whether what another process journals is applied as it comes.

  Raises:
    InputError: for whatever is wrong with the folder or the journal.
  """
  with contextlib.redirect_stdout(sys.stderr):
    recommender = Recommender.restore(
      command.workdir,
      journal=command.journal,
      follow=follow,
      data_dir=command.data_dir,
    )
  try:
    if not writes:
      yield recommender
      return
    recommender.start_writing()
    with contextlib.redirect_stdout(sys.stderr):
      grown_log.observe_new(recommender)
    try:
      yield recommender
    finally:
      # After a changeover another one has the journal.
      if recommender.current.needs_snapshot:
        recommender.current.snapshot()
  finally:
    recommender.current.close()
