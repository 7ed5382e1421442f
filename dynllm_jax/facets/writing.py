"""LLM_G: a user's purchases in a window to four texts (SPEC 3.6, 8).

A writer is one file in this folder, found by its name, with

    VERSION: int, raised whenever the same window gets other texts
    write(writer_config, log, profiles, store='', report=print) -> FacetTexts
    describe(writer_config) -> str
    identity(writer_config, store='') -> what texts follow from but the
      purchases: JSON values, the VERSION and such fields among them as do
      not only say how fast or at what cost texts are written
    plan(writer_config, log, profiles, store='', report=print): reports what
      `write` would take, and spends nothing

For a profile it may read the purchases that `profiles` gives for that row and
the item table, which is fixed; nothing else of the log. `store` is a folder
in which a writer may keep what is dear to write, so that broken-off work
resumes ('' keeps nothing); `report` takes a line of progress.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from dynllm_jax import plugins
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS

UNKNOWN = 'unknown'


@dataclasses.dataclass(frozen=True)
class FacetTexts:
  """What a writer has written, every text once.

  Attributes:
    texts: the distinct texts; `texts[0]` is "unknown", none is empty.
    index: i32[rows, 4], the texts of each profile in the order of FACETS; 0
      where the writer has nothing to say or has failed.
    num_read: i32[rows], how many of a profile's purchases, the newest, the
      writer has read.
    num_failed: profiles for which no valid answer was had.
  """

  texts: list[str]
  index: np.ndarray
  num_read: np.ndarray
  num_failed: int = 0


def collect(rows: Any, num_read: np.ndarray, num_failed: int = 0) -> FacetTexts:
  """Stores every text once.

  Args:
    rows: for each profile its four texts; '' or None is "unknown".
    num_read, num_failed: of `FacetTexts`.
  """
  index = np.zeros((len(num_read), len(FACETS)), np.int32)
  known = {UNKNOWN: 0}
  for row, four in enumerate(rows):
    index[row] = [
      known.setdefault(text or UNKNOWN, len(known)) for text in four
    ]
  return FacetTexts(list(known), index, num_read, num_failed)


def write(
  writer_config: Any,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> FacetTexts:
  """Writes the facets with the writer that `writer_config.name` names.

  Args:
    writer_config: `config.facets.writer`.
    log: the prepared log.
    profiles: the users and windows to write for.
    store: folder for the writer's own use, '' for none.
    report: takes lines of progress.

  Raises:
    InputError: if there is no such writer.
  """
  return writer(writer_config).write(
    writer_config, log, profiles, store, report
  )


def plan(
  writer_config: Any,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> None:
  """Reports what `write` would take, given the same, and spends nothing.

  Raises:
    InputError: if there is no such writer.
  """
  writer(writer_config).plan(writer_config, log, profiles, store, report)


def identity(writer_config: Any, store: str = '') -> dict[str, Any]:
  """What texts follow from but the purchases, as JSON values.

  Args:
    writer_config: `config.facets.writer`.
    store: as of `write`.

  Raises:
    InputError: if there is no such writer, or its model cannot be had.
  """
  module = writer(writer_config)
  return {
    **module.identity(writer_config, store),
    **plugins.version(plugins.WRITERS, module),
  }


def describe(writer_config: Any) -> str:
  """The writer in words, for reports.

  Raises:
    InputError: if there is no such writer.
  """
  return writer(writer_config).describe(writer_config)


def writer(writer_config: Any) -> Any:
  """The module of the writer that `writer_config.name` names.

  Raises:
    InputError: if there is no such writer.
  """
  return plugins.load(
    plugins.WRITERS, writer_config.name, 'config.facets.writer.name'
  )
