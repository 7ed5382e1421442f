"""A dozen users of the test split, for people: what each was recommended.

They are drawn at random, not chosen for how well they look. Each is asked
about at the time of the first test event, so that everything shown as known
lies strictly before it, and what was bought next lies in the test split.
"""

from collections.abc import Mapping
import functools
import json
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.engine import ranking
from dynllm_jax.engine import resident_texts
from dynllm_jax.objectives import scoring
from dynllm_jax.parallel import sharded_table
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS
from dynllm_jax.types import SystemMemory

NUM_USERS = 12
NUM_ITEMS = 10
_NUM_NEW = 2  # users without an earlier event, where there are some
_SHOWN = 10  # purchases that are named
_TIMES = 300  # purchases that the timeline has


class Purchase(NamedTuple):
  """An event of a user."""

  time: int  # unix seconds
  item: str  # the item's id
  title: str
  recommended: bool = False  # whether it is among the recommendations


class Recommendation(NamedTuple):
  """An item among a user's first ten.

  `lifts` says why: by how much each term of the score (SPEC 3.9, 3.11) is
  above its mean over all candidates. A term that is the same for every item,
  however large, moves none.
  """

  item: str
  title: str
  about: str  # category and brand
  score: float
  lifts: dict[str, float]
  bought: bool  # in the test split, by this user
  bought_before: bool


class Case(NamedTuple):
  """A user at the time of the first test event.

  Attributes:
    user: the id.
    time: unix seconds.
    num_past: events before it.
    past_times: of the newest of them, unix seconds.
    past: the newest, newest first.
    facets: the four texts that serve the user then; None is "unknown".
    recommended: the items with the highest scores, the highest first.
    num_next: events in the test split.
    next_times: of the first of them, unix seconds.
    next: the first ones.
  """

  user: str
  time: int
  num_past: int
  past_times: list[int]
  past: list[Purchase]
  facets: dict[str, str | None]
  recommended: list[Recommendation]
  num_next: int
  next_times: list[int]
  next: list[Purchase]


class _Scored(NamedTuple):
  """Scores of the whole catalogue for a few users, on the host."""

  total: np.ndarray  # f32[users, items + 1], -inf for what is no candidate
  terms: dict[str, np.ndarray]  # f32[users, items + 1]


def collect(
  run: PreparedRun, bound: BoundSystem, memory: SystemMemory
) -> list[Case]:
  """The cases of a run; to be called within the run's mesh.

  Args:
    run: the run.
    bound: the system in its best epoch.
    memory: after the last validation event.
  """
  log = run.log
  users = _draw(log)
  now = int(log.times[log.validation_end])
  times = np.full(len(users), now, np.int32)
  inputs = resident_texts.with_texts_of(
    bound.inputs, run.facet_texts, users, times
  )
  scored = _score(run, bound.replace(inputs=inputs), memory, users, times)
  texts = _facet_texts(
    pathlib.Path(run.facets['folder']),
    np.asarray(resident_texts.rows_of(bound.inputs, users, times)),
  )
  return [
    _case(run, int(user), now, scored, row, facets)
    for row, (user, facets) in enumerate(zip(users, texts, strict=True))
  ]


def _draw(log: EventLog) -> np.ndarray:
  """i32[users] with a test event, by chance; a few have no earlier one."""
  before = np.zeros(log.num_users + 1, bool)
  before[log.users[: log.validation_end]] = True
  later = np.unique(log.users[log.validation_end :])
  later = np.random.default_rng(0).permutation(later)
  known, new = later[before[later]], later[~before[later]]
  known = known[: NUM_USERS - min(_NUM_NEW, len(new))]
  return np.append(known, new[: NUM_USERS - len(known)]).astype(np.int32)


def _score(
  run: PreparedRun,
  bound: BoundSystem,
  memory: SystemMemory,
  users: np.ndarray,
  times: np.ndarray,
) -> _Scored:
  """Scores all items for users, a block of the catalogue at a time."""
  num_items, eval_config = run.log.num_items, run.config.eval
  size = sharded_table.round_up_to_devices(
    min(eval_config.block_size, num_items)
  )

  blocks: list[dict[str, np.ndarray]] = []
  for first in range(1, num_items + 1, size):
    ids = np.arange(first, first + size, dtype=np.int32)
    found = terms_of_block(
      bound, memory, users, times, np.minimum(ids, num_items), times[0]
    )
    inside = ids <= num_items
    blocks.append({n: np.asarray(x)[:, inside] for n, x in found.items()})

  padding = [(0, 0), (1, 0)]  # column 0 is no item
  terms = {
    name: np.pad(np.concatenate([b[name] for b in blocks], axis=1), padding)
    for name in blocks[0]
  }
  total = sum(terms.values(), np.zeros(1, np.float32))
  allowed = np.tile(
    ranking.candidate_mask(run.log, eval_config.candidates), (len(users), 1)
  )
  if ranking.filters_seen(eval_config.filter_seen, run.log):
    past = slice(run.log.validation_end)
    for row, user in enumerate(users):
      allowed[row, run.log.items[past][run.log.users[past] == user]] = False
  return _Scored(np.where(allowed, total, -np.inf), terms)


# A dozen users are scored once: that need not be fast, and compiles in a third
# of the time.
@functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
def terms_of_block(
  bound: BoundSystem,
  memory: SystemMemory,
  users: Array,
  times: Array,
  items: Array,
  item_time: Array,
) -> dict[str, Array]:
  """The terms of the scores of some items for some users.

  Args:
    bound: the system.
    memory: before the time.
    users: i32[users].
    times: i32[users], seconds.
    items: i32[items].
    item_time: i32[], seconds.

  Returns:
    f32[users, items] by term (`scoring.score_terms`).
  """
  items = sharded_table.shard_first_axis(jnp.asarray(items))
  found = bound.embed(memory, users, times, items, item_time)
  terms = scoring.score_terms(*found, bound.inputs.num_items)
  return sharded_table.replicate(terms)


def _facet_texts(
  folder: pathlib.Path, rows: np.ndarray
) -> list[dict[str, str | None]]:
  """The texts of facets i32[users, 4], by facet; None where one is unknown."""
  wanted, texts = set(rows.ravel().tolist()), {}
  with open(folder / 'texts.jsonl', encoding='utf-8') as file:
    for number, line in enumerate(file):
      if number in wanted:
        texts[number] = json.loads(line)['text']
  return [
    {
      name: texts[row] if row else None
      for name, row in zip(FACETS, four, strict=True)
    }
    for four in rows.tolist()
  ]


def _case(
  run: PreparedRun,
  user: int,
  now: int,
  scored: _Scored,
  row: int,
  facets: Mapping[str, str | None],
) -> Case:
  """A user with the scores of their row."""
  log = run.log
  events = np.flatnonzero(log.users == user)
  past = events[events < log.validation_end]
  later = events[events >= log.validation_end]

  # Stable, so that equal scores stand in the order of the catalogue.
  order = np.argsort(-scored.total[row], kind='stable')[:NUM_ITEMS]
  order = order[np.isfinite(scored.total[row, order])]
  candidates = np.isfinite(scored.total[row])
  means = {
    name: float(values[row, candidates].mean())
    for name, values in scored.terms.items()
  }
  first = set(order.tolist())
  bought, before = set(log.items[later]), set(log.items[past])

  def purchase(event: int) -> Purchase:
    item = int(log.items[event])
    return Purchase(
      _unix(log, event), log.item_ids[item], log.titles[item], item in first
    )

  return Case(
    user=log.user_ids[user],
    time=int(log.start_time) + now,
    num_past=len(past),
    past_times=[_unix(log, event) for event in past[-_TIMES:]],
    past=[purchase(event) for event in past[::-1][:_SHOWN]],
    facets=dict(facets),
    recommended=[
      Recommendation(
        item=log.item_ids[item],
        title=log.titles[item],
        about=' | '.join(
          filter(None, (log.categories[item], log.brands[item]))
        ),
        score=float(scored.total[row, item]),
        lifts={
          name: float(values[row, item]) - means[name]
          for name, values in scored.terms.items()
        },
        bought=item in bought,
        bought_before=item in before,
      )
      for item in order
    ],
    num_next=len(later),
    next_times=[_unix(log, event) for event in later[:_TIMES]],
    next=[purchase(event) for event in later[:_SHOWN]],
  )


def _unix(log: EventLog, event: Any) -> int:
  return int(log.start_time + log.times[event])
