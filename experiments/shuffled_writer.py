"""A writer for a control: each user has the facets of somebody else.

`facets.writer.name=experiments.shuffled_writer`, with the other fields of the
writer `flax`. Within each window the users' purchases go round in a seeded
order, so that the texts are those of `flax`, as many and of the same time, and
say nothing of whom they are about but the window. What a system gains from
facets and not from these comes from what they say of the user.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writers import flax_writer
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.types import EventLog

VERSION = 1


def check(writer_config: ml_collections.ConfigDict) -> None:
  """Checks the fields, which are those of `flax`."""
  flax_writer.check(_fields(writer_config))


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The writer in words, for reports."""
  told = flax_writer.describe(_fields(writer_config))
  return f'{told}, each of another user of the window'


def identity(
  writer_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """What texts depend on besides the purchases."""
  told = flax_writer.identity(_fields(writer_config), store)
  return {**told, 'name': writer_config.name, 'shuffled': VERSION}


def write(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> FacetTexts:
  """Writes facets; the prompts, and so the answers, are those of `flax`."""
  return flax_writer.write(
    _fields(writer_config),
    log,
    shuffled(profiles, writer_config.seed),
    store,
    report,
  )


def plan(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> None:
  """Says what writing would take, which is what `flax` would."""
  flax_writer.plan(_fields(writer_config), log, profiles, store, report)


def shuffled(profiles: Profiles, seed: int) -> Profiles:
  """Gives every row the purchases of another row of the same close.

  The order of a window depends on the seed, the close and how many users were
  active in it alone, so that no later purchase changes an earlier row.

  Args:
    profiles: all rows.
    seed: of the order.

  Returns:
    Profiles with the same users and closes. The only row of its close keeps its
    own purchases.
  """
  first, last = profiles.first.copy(), profiles.last.copy()
  for close in np.unique(profiles.closes):
    rows = np.flatnonzero(profiles.closes == close)
    rows = np.random.default_rng([seed, close]).permutation(rows)
    others = np.roll(rows, 1)
    first[rows], last[rows] = profiles.first[others], profiles.last[others]
  return dataclasses.replace(profiles, first=first, last=last)


def _fields(
  writer_config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The same fields of the writer `flax`."""
  fields = writer_config.copy_and_resolve_references()
  fields.name = 'flax'
  return fields
