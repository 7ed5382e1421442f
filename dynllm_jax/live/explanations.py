"""Why an item is recommended: the terms of its score and what they rest on."""

import functools
import math
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.facets import facet_bank
from dynllm_jax.live.live_state import LiveState
from dynllm_jax.objectives import scoring
from dynllm_jax.types import Array
from dynllm_jax.types import BoundSystem
from dynllm_jax.types import SystemMemory
from dynllm_jax.types import Terms

_DEPTH = 32  # purchases that are compared with the item
_SHOWN = 5  # purchases, walks and texts that are named, the weightiest first
_DIMENSIONS = 8  # of a distilled facet that are named


class Purchase(NamedTuple):
  """An earlier purchase of the user.

  Attributes:
    item: its id.
    title: '' without one.
    time: unix seconds.
    weight: its part of the term; of `texts`, the cosine of the two texts.
  """

  item: str
  title: str
  time: int
  weight: float


class Walk(NamedTuple):
  """A walk from a purchase of the user through another user to the item.

  Attributes:
    item: the id of what the user took.
    title: '' without one.
    time: unix seconds at which the user took it.
    through: the id of another user who took it too,
    their_time: and when;
    then: and when that user took the item that is explained.
    weight: its part of the term.
  """

  item: str
  title: str
  time: int
  through: str
  their_time: int
  then: int
  weight: float


class FacetPart(NamedTuple):
  """A facet of the user, and what the network made of it.

  Attributes:
    name: crd, int, ctg or brd.
    text: that a language model wrote, '' where it is "unknown".
    attention: the share of the network's attention, a mean over its heads.
    dimensions: of the facet's vector that distillation keeps, the strongest
      first.
  """

  name: str
  text: str
  attention: float
  dimensions: list[int]


class Explanation(NamedTuple):
  """Why an item has the score that it has for a user (SPEC 10.4).

  Attributes:
    user, item: ids.
    title: of the item, '' without one.
    time: unix seconds, of the question.
    score: the sum of the terms.
    terms: the share of each term by its name (`scoring.score_terms`).
    copies: earlier purchases of this very item, behind the copy term; without
      one, what a term that counts has counted, and their weight is 0.
    walks: behind the walk term.
    texts: purchases whose texts are most like the item's, behind the text term.
    facets: behind the network's part.
    latest: the user's latest purchases, from which the network's memory and
      neighborhood come; their weight is 0.
  """

  user: str
  item: str
  title: str
  time: int
  score: float
  terms: dict[str, float]
  copies: list[Purchase]
  walks: list[Walk]
  texts: list[Purchase]
  facets: list[FacetPart]
  latest: list[Purchase]


class Question(NamedTuple):
  """What is to be explained.

  Attributes:
    user, item: rows; user 0 is one who is not known.
    time: seconds since the log's first event.
    cached: whether the item is as it was last embedded.
  """

  user: int
  item: int
  time: int
  cached: bool


class Names(NamedTuple):
  """What rows are called.

  Attributes:
    users, items, titles: by row.
    start: unix seconds of the log's first event.
    fanout: `config.model.walk_fanout`, () without.
    facets: the folder of the facets' texts.
  """

  users: list[str]
  items: list[str]
  titles: list[str]
  start: int
  fanout: tuple[int, ...]
  facets: pathlib.Path


class _Parts(NamedTuple):
  """What the device says of one user and one item."""

  terms: dict[str, Array]  # f32[1, items], of which the first is asked for
  copy: Terms | None
  walk: Terms | None
  directions: Array | None  # f32[purchases], cosines of their texts


@jax.jit
def _explain(
  bound: BoundSystem,
  memory: SystemMemory,
  user: Array,
  time: Array,
  items: Array,
  vector: Array | None,
) -> _Parts:
  """The terms of one user and the first of some items.

  Args:
    items: i32[1 + purchases], what the user took after it.
    vector: f32[dim] that the first one has; None to embed it at `time`.
  """
  users, found = bound.embed(memory, user[None], time[None], items, time)
  if vector is not None:
    first = jnp.asarray(found.vector).at[0].set(vector)
    found = found.replace(vector=first)
  cosines = None if found.text is None else found.text[1:] @ found.text[0]
  terms = scoring.score_terms(users, found, bound.inputs.num_items)
  return _Parts(terms, users.copy, users.walk, cosines)


@jax.jit
def _attention(
  bound: BoundSystem, memory: SystemMemory, user: Array, time: Array
) -> Any:
  assert bound.system.attention is not None
  return bound.system.attention(
    bound.params, memory, bound.inputs, user[None], time[None]
  )


def explain(state: LiveState, names: Names, asked: Question) -> Explanation:
  """Explains a score; what it rests on is strictly earlier than the question.

  Args:
    state: whose arrays are not changed meanwhile.
    names: what rows are called.
    asked: the question.
  """
  user, item, time, cached = asked
  memory = state.memory_at(time)
  items, times = state.user_graph.before(user, time, _DEPTH)
  padded = np.zeros(1 + _DEPTH, np.int32)
  padded[0], padded[1 : 1 + len(items)] = item, items
  parts = _explain(
    state.bound,
    memory,
    np.int32(user),
    np.int32(time),
    padded,
    state.cached_vector(item) if cached else None,
  )
  terms = {name: float(value[0, 0]) for name, value in parts.terms.items()}

  name = functools.partial(_purchase, names)
  cosines = np.zeros(0)
  if parts.directions is not None:
    cosines = np.asarray(parts.directions)[: len(items)]
  nearest = np.argsort(-cosines, kind='stable')[:_SHOWN]
  return Explanation(
    user=names.users[user],
    item=names.items[item],
    title=names.titles[item],
    time=names.start + time,
    score=math.fsum(terms.values()),
    terms=terms,
    copies=_copies(parts.copy, state, names, asked),
    walks=_walks(parts.walk, state, names, asked, terms.get('walk', 0.0)),
    texts=[name(items[k], times[k], cosines[k]) for k in nearest],
    facets=_facets(state, names, asked),
    latest=[name(*row, 0.0) for row in zip(items[:_SHOWN], times[:_SHOWN])],
  )


def _purchase(names: Names, item: int, time: int, weight: float) -> Purchase:
  return Purchase(
    names.items[item],
    names.titles[item],
    names.start + int(time),
    float(weight),
  )


def _copies(
  copy: Terms | None, state: LiveState, names: Names, asked: Question
) -> list[Purchase]:
  """The user's earlier purchases of the item, the latest first."""
  if copy is None:
    items, times = state.user_graph.before(asked.user, asked.time, _DEPTH)
    weights = np.zeros(len(items))
  else:
    items, weights = np.asarray(copy.items)[0], np.asarray(copy.weights)[0]
    _, times = state.user_graph.before(asked.user, asked.time, len(items))
  return [
    _purchase(names, asked.item, times[k], weights[k])
    for k in range(len(times))
    if items[k] == asked.item
  ]


def _walks(
  walk: Terms | None,
  state: LiveState,
  names: Names,
  asked: Question,
  share: float,
) -> list[Walk]:
  """The weightiest walks to the item."""
  if walk is None or len(names.fanout) != 3:
    return []
  items, weights = np.asarray(walk.items)[0], np.asarray(walk.weights)[0]
  weights = np.where(items == asked.item, weights, 0.0)
  total = weights.sum()

  # A walk's place among the terms says which neighbor it took at each hop.
  walks = []
  for place in np.argsort(-weights, kind='stable')[:_SHOWN]:
    if weights[place] <= 0:
      break
    own, other, last = np.unravel_index(place, names.fanout)
    taken, when = state.user_graph.before(asked.user, asked.time, own + 1)
    others, then = state.item_graph.before(
      int(taken[own]), asked.time, other + 1
    )
    _, ends = state.user_graph.before(int(others[other]), asked.time, last + 1)
    walks.append(
      Walk(
        item=names.items[taken[own]],
        title=names.titles[taken[own]],
        time=names.start + int(when[own]),
        through=names.users[others[other]],
        their_time=names.start + int(then[other]),
        then=names.start + int(ends[last]),
        weight=float(share * weights[place] / total),
      )
    )
  return walks


def _facets(state: LiveState, names: Names, asked: Question) -> list[FacetPart]:
  """The user's facets, the one with most attention first."""
  if state.system.attention is None:
    return []
  found = _attention(
    state.bound,
    state.memory_at(asked.time),
    np.int32(asked.user),
    np.int32(asked.time),
  )

  rows, weights = np.asarray(found.rows)[0], np.asarray(found.weights)[0]
  texts = facet_bank.texts_by_row(names.facets, {int(r) for r in rows if r})
  kept = None if found.kept is None else np.abs(np.asarray(found.kept)[0])
  return [
    FacetPart(
      name=found.names[k],
      text=texts.get(int(rows[k]), ''),
      attention=float(weights[k]),
      dimensions=[]
      if kept is None
      else np.argsort(-kept[k], kind='stable')[:_DIMENSIONS].tolist(),
    )
    for k in np.argsort(-weights, kind='stable')
  ]
