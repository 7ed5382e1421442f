"""Small random logs and inputs for tests of any part of the package.

Everything follows from a seed. Shapes depend on the arguments alone, never on
the seed, so that a test over many seeds compiles once.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.graph import training_graph
from dynllm_jax.graph.inputs import build_inputs
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS
from dynllm_jax.types import Inputs
from dynllm_jax.types import SameTimeItems
from dynllm_jax.types import TemporalGraph
from dynllm_jax.types import TrainGraph

DAY = 86_400
MONDAY = 1_609_718_400  # unix seconds of Monday, 4 January 2021, midnight


def make_log(users, items, times, num_users=None, num_items=None) -> EventLog:
  """A log of the given events, which must be sorted by time.

  Args:
    users, items: ids from 1.
    times: seconds.
    num_users, num_items: nodes there are; by default the largest ids.

  Returns:
    The log, split as SPEC 2.2 says; a part of a tiny log may be empty.
  """
  num_users = max(users) if num_users is None else num_users
  num_items = max(items) if num_items is None else num_items

  def names(letter, count):
    return np.array(['', *(f'{letter}{k + 1}' for k in range(count))])

  ends = []
  for percent in (70, 85):
    end = len(users) * percent // 100
    while 0 < end < len(users) and times[end - 1] == times[end]:
      end -= 1
    ends.append(end)
  return EventLog(
    users=np.array(users, np.int32),
    items=np.array(items, np.int32),
    times=np.array(times, np.int64),
    user_ids=names('u', num_users),
    item_ids=names('i', num_items),
    titles=names('title ', num_items),
    categories=names('category ', num_items),
    brands=names('brand ', num_items),
    train_end=ends[0],
    validation_end=ends[1],
    start_time=0,
    counts={},
    source='made by a test',
    simulated=True,
    fingerprint='made by a test',
  )


def log_of_events(
  events, titles=('a', 'b', 'c'), categories=None, brands=None, num_users=None
) -> EventLog:
  """A log of a few events with what an item is called; all is training.

  Args:
    events: tuples of user, item and seconds since Monday, 4 January 2021,
      midnight, in any order.
    titles, categories, brands: of items 1, 2, ...; empty texts if None.
    num_users: by default the largest user there is.

  Returns:
    The log, whose fingerprint is that of the arguments.
  """
  events = sorted(events, key=lambda event: event[2])
  users, items, times = (np.array([e[k] for e in events]) for k in range(3))
  text = lambda column: np.array(['', *(column or [''] * len(titles))])
  content = repr((events, titles, categories, brands)).encode()
  return dataclasses.replace(
    make_log(
      users, items, times, num_users or max(users, default=0), len(titles)
    ),
    titles=text(titles),
    categories=text(categories),
    brands=text(brands),
    train_end=len(events),
    validation_end=len(events),
    start_time=MONDAY,
    fingerprint=hashlib.sha256(content).hexdigest(),
  )


def random_log(
  seed, num_users=6, num_items=8, num_events=60, num_times=20
) -> EventLog:
  """A random log with many events at equal times, also of one user.

  No event occurs twice. A user or an item may have no event at all. Gaps
  between times run from a second to weeks.

  Args:
    seed: of everything.
    num_users, num_items, num_events: exact.
    num_times: distinct times at most.
  """
  rng = np.random.default_rng(seed)
  every = num_users * num_items * num_times
  code = rng.choice(every, num_events, replace=False)
  user, item, time = np.unravel_index(code, (num_users, num_items, num_times))
  gaps = np.exp(rng.uniform(0, np.log(20 * DAY), num_times)).astype(np.int64)
  times = np.cumsum(1 + gaps)[time]
  order = np.argsort(times, kind='stable')
  times = times[order] - times.min()
  return make_log(1 + user[order], 1 + item[order], times, num_users, num_items)


def random_bank(log, llm_dim, seed=0, max_profiles=3) -> FacetBank:
  """Facets of 0 to `max_profiles` profiles a user; some are "unknown"."""
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, max_profiles + 1, log.num_users)
  last = int(log.times[-1]) + 1
  closes = [
    1 + np.sort(rng.choice(last + max_profiles, count, replace=False))
    for count in counts
  ]
  # A shape of its own for each seed would compile for each seed.
  rows = max_profiles * log.num_users
  num_profiles = counts.sum()
  index = rng.integers(0, 10, (rows, len(FACETS)))
  closes = np.concatenate([*closes, np.zeros(rows - num_profiles)])
  return FacetBank(
    texts=rng.normal(size=(10, llm_dim)).astype(np.float16),
    offsets=np.cumsum([0, 0, *counts]).astype(np.int32),
    closes=closes.astype(np.int32),
    index=index.astype(np.int32),
    longest=max_profiles,
  )


def random_inputs(
  log, llm_dim=5, padding=8, seed=0, num_events=None, sold=False
) -> Inputs:
  """The inputs of a log on the device, with random facets and item texts.

  Args:
    log: the log.
    llm_dim: width of a text embedding.
    padding: rows added to the log; the largest batch that a test reads.
    seed: of facets and texts.
    num_events: shapes are those of a log of so many events, if not None: what
      is compiled for the longer log serves this one.
    sold: as `build_inputs` has it.
  """
  num_events = num_events or log.num_events
  rng = np.random.default_rng(seed)
  item_text = rng.normal(size=(log.num_items + 1, llm_dim))
  item_text[0] = 0.0
  inputs = build_inputs(
    log,
    item_text.astype(np.float16),
    random_bank(log, llm_dim, seed),
    padding + num_events - log.num_events,
    sold=sold,
  )
  return jax.tree.map(jnp.asarray, one_shape(inputs, num_events))


def one_shape(tree, num_events=None):
  """Graphs, or inputs with graphs, compiled alike for every log of one size.

  The longest row is stated as all events, which a search may rely on just as
  well. No row reaches the edges that are appended to a graph, and groups
  without an item are appended to those of equal times.
  """
  pad = lambda x, size: np.pad(x, (0, size - len(x)), 'edge')
  if isinstance(tree, TemporalGraph):
    num_events = num_events or len(tree.times)
    return dataclasses.replace(
      tree,
      neighbors=pad(tree.neighbors, num_events),
      times=pad(tree.times, num_events),
      longest=num_events,
    )
  if isinstance(tree, SameTimeItems):
    num_events = num_events or len(tree.group)
    return dataclasses.replace(
      tree,
      offsets=pad(tree.offsets, num_events + 1),
      items=pad(tree.items, num_events),
      group=pad(tree.group, num_events),
      longest=num_events,
    )
  return dataclasses.replace(
    tree,
    **{
      name: one_shape(getattr(tree, name), num_events)
      for name in ('user_graph', 'item_graph', 'same_time')
    },
  )


def train_graph(log) -> TrainGraph:
  """The graph of a log's training split, on the device."""
  return jax.tree.map(jnp.asarray, training_graph.train_graph(log))


def adjacency(log):
  """f64[nodes, nodes], 1 for a pair of training, however often."""
  size = log.num_users + log.num_items + 2
  matrix = np.zeros((size, size))
  for user, item in zip(log.users[: log.train_end], log.items[: log.train_end]):
    node = log.num_users + 1 + item
    matrix[user, node] = matrix[node, user] = 1
  return matrix


def random_params(init, *args, seed=0):
  """Random parameters in the shapes that a Flax `init` would give them.

  Nothing is compiled, and no bias is zero, where it would not show.

  Args:
    init: `module.init`, with keywords bound if it needs any.
    *args: of the module's call.
    seed: of the values.
  """
  rng = np.random.default_rng(seed)
  args = jax.tree.map(
    lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, args
  )
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args))
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype),
    shapes,
  )


def perceptron(params, x):
  """`W_2 relu(W_1 x)` with biases in float64, of `layers.mlp.MLP`'s weights.

  The second layer is made first, so it has the first name.
  """
  second, first = (params[name] for name in sorted(params))
  first, second = jax.tree.map(lambda w: np.asarray(w, float), (first, second))
  hidden = np.maximum(np.asarray(x) @ first['kernel'] + first['bias'], 0)
  return hidden @ second['kernel'] + second['bias']
