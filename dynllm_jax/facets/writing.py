"""LLM_G: a user's purchases in a window to four texts (SPEC 3.6, 8).

A writer is a module, which `config.facets.writer.name` names: a file of
`facets/writers`, `NAME_writer.py`, by NAME, or any other that Python finds, by
its full name (`config.facets.writer.name=my_shop.clerk`; see plugins.py). A
writer has

    VERSION: int
    write(writer_config: ml_collections.ConfigDict, log: EventLog,
          profiles: windows.Profiles, store: str = '',
          report: Callable[[str], None] = print) -> FacetTexts
    plan(writer_config, log, profiles, store='', report=print) -> None
    identity(writer_config, store='') -> dict[str, Any]
    describe(writer_config) -> str

`write` returns four texts of each profile, best made by `collect`. For a
profile it may read the purchases that `profiles` gives for that row and the
item table, which is fixed; nothing else of the log: a facet that had read a
later purchase would tell the future. `log.times + log.start_time` are unix
seconds. `plan` reports what `write` would take, and spends nothing.

`identity` returns JSON values: all that texts depend on besides the
purchases, such as the VERSION and the fields of `config.facets.writer`, without
those that only say how fast or at what cost texts are written. Facets are
found again on disk by it, and for a writer from outside by its module's name
and VERSION too: raise VERSION whenever the same window gets other texts.
`describe` is the writer in words, for reports.

`store` is a folder in which a writer may keep what is expensive to write, so
that interrupted work resumes ('' keeps nothing); `report` takes a line of
progress. A writer that has a function `check(writer_config)` is asked before
any work is done. Each function raises `InputError`, in one line, for a field
that is not allowed: the field, its value and what is allowed.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import types
from typing import Any

import ml_collections
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
    num_failed: how many profiles got no valid answer.
  """

  texts: list[str]
  index: np.ndarray
  num_read: np.ndarray
  num_failed: int = 0


def collect(
  rows: Iterable[Sequence[str | None]],
  num_read: np.ndarray,
  num_failed: int = 0,
) -> FacetTexts:
  """Stores every text once.

  Args:
    rows: the four texts of each profile; '' or None is "unknown".
    num_read, num_failed: as in `FacetTexts`.
  """
  index = np.zeros((len(num_read), len(FACETS)), np.int32)
  known = {UNKNOWN: 0}
  for row, four in enumerate(rows):
    index[row] = [
      known.setdefault(text or UNKNOWN, len(known)) for text in four
    ]
  return FacetTexts(list(known), index, num_read, num_failed)


def write(
  writer_config: ml_collections.ConfigDict,
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
  writer_config: ml_collections.ConfigDict,
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


def identity(
  writer_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """What texts depend on besides the purchases, as JSON values.

  Of a writer from outside, its module's name and VERSION are added.

  Args:
    writer_config: `config.facets.writer`.
    store: as in `write`.

  Raises:
    InputError: if there is no such writer, or its model cannot be found.
  """
  module = writer(writer_config)
  return {
    **module.identity(writer_config, store),
    **plugins.version(plugins.WRITERS, module),
  }


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The writer in words, for reports.

  Raises:
    InputError: if there is no such writer.
  """
  return writer(writer_config).describe(writer_config)


def writer(writer_config: ml_collections.ConfigDict) -> types.ModuleType:
  """The module of the writer that `writer_config.name` names.

  Raises:
    InputError: if there is no such writer.
  """
  return plugins.load(
    plugins.WRITERS, writer_config.name, 'config.facets.writer.name'
  )
