"""What a recommender answers."""

from typing import NamedTuple

import numpy as np

from dynllm_jax.types import BoundSystem
from dynllm_jax.types import SystemMemory


class Recommendations(NamedTuple):
  """The best items of a user, the best first.

  Attributes:
    user: whose.
    items: ids; fewer than asked for where fewer are allowed.
    scores: f32[items].
    titles: '' where an item has none.
  """

  user: str
  items: list[str]
  scores: np.ndarray
  titles: list[str]


class Purchase(NamedTuple):
  """An event of a user.

  Attributes:
    item: which item.
    title: its title, '' without one.
    time: unix seconds.
  """

  item: str
  title: str
  time: int


class TopItems(NamedTuple):
  """The best items of several users as arrays, the best first.

  Attributes:
    users: whose.
    items: i32[users, k], rows of `Recommender.items`, counted from 1.
    scores: f32[users, k]; -inf where there is no further item.
  """

  users: list[str]
  items: np.ndarray
  scores: np.ndarray


class Frozen(NamedTuple):
  """A system with its state, for whoever computes with it elsewhere.

  Attributes:
    bound: the system, its parameters and what it reads.
    memory: after the newest event.
    num_items: that there are; tables may have room for more.
    start: unix seconds of the log's first event.
    seconds: after that, just after the newest event.
  """

  bound: BoundSystem
  memory: SystemMemory
  num_items: int
  start: int
  seconds: int


class Similar(NamedTuple):
  """Items like an item, the most alike first.

  Attributes:
    item: like which.
    items: ids.
    cosines: f32[items], of the items' vectors.
    titles: '' where an item has none.
  """

  item: str
  items: list[str]
  cosines: np.ndarray
  titles: list[str]
