"""Logs of any size and shape, drawn at random.

The curves of experiments/scaling.py need logs with millions of events or
nodes. A simulated log with preferences would take longer to make than to train
on. From these logs nothing can be learned.
"""

import numpy as np

from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import SECONDS_PER_DAY

_DAYS = 730  # of a log
_WINDOW_DAYS = 30  # between two profiles of a user
_PROFILES = 4  # of a user
_TEXTS = 20_000  # distinct facet texts at most

# The size of online_retail at 20 / 5 (SPEC 6): its users and items, and the
# events and days of its training split.
_RETAIL = {'users': 3_001, 'items': 3_126, 'events': 259_056, 'days': 261}
_RETAIL_LINES = 20  # of an invoice, on average
_RETAIL_LONGEST = 500  # lines of an invoice


def uniform(
  num_events: int,
  num_users: int,
  num_items: int,
  seed: int = 0,
  active: int = 0,
) -> EventLog:
  """A log in which every node is as likely as any other.

  Args:
    num_events: at least 1.
    num_users: with or without events.
    num_items: with or without events.
    seed: of the draw.
    active: if not 0, at most so many users and so many items have events, each
      at a random place of its table.

  Returns:
    The log; all of it is training.
  """
  rng = np.random.default_rng(seed)

  def nodes(size: int) -> np.ndarray:
    if not active:
      return rng.integers(1, size + 1, num_events, dtype=np.int32)
    few = rng.integers(1, size + 1, active, dtype=np.int32)
    return few[rng.integers(0, active, num_events)]

  times = np.sort(
    rng.integers(0, _DAYS * SECONDS_PER_DAY, num_events, dtype=np.int64)
  )
  return _log(
    nodes(num_users),
    nodes(num_items),
    times,
    num_users=num_users,
    num_items=num_items,
  )


def retail(share: float = 1.0, seed: int = 0) -> EventLog:
  """A log shaped like online_retail: invoices with many lines at one time.

  The numbers of users, items, events and days are those of that log. An
  invoice has 20 lines on average and now and then 500; few items are in demand.

  Args:
    share: of that log's events and days.
    seed: of the draw.

  Returns:
    The log; all of it is training.
  """
  rng = np.random.default_rng(seed)
  num_events = max(1, int(share * _RETAIL['events']))

  sizes = np.minimum(
    1 + rng.geometric(1 / _RETAIL_LINES, num_events), _RETAIL_LONGEST
  )
  sizes[rng.random(num_events) < 1 / 500] = _RETAIL_LONGEST
  sizes = sizes[: np.searchsorted(np.cumsum(sizes), num_events) + 1]

  buyers = _in_demand(rng, _RETAIL['users'], len(sizes))
  days = _RETAIL['days'] * share
  starts = np.sort(
    rng.integers(
      0, max(1, int(days * SECONDS_PER_DAY)), len(sizes), dtype=np.int64
    )
  )

  return _log(
    np.repeat(buyers, sizes)[:num_events],
    _in_demand(rng, _RETAIL['items'], num_events),
    np.repeat(starts, sizes)[:num_events],
    num_users=_RETAIL['users'],
    num_items=_RETAIL['items'],
  )


def _in_demand(
  rng: np.random.Generator, num_nodes: int, size: int
) -> np.ndarray:
  """i32[size] nodes, drawn in proportion to 1 / sqrt(node)."""
  weights = np.arange(1, num_nodes + 1) ** -0.5
  return (
    rng.choice(num_nodes, size, p=weights / weights.sum()).astype(np.int32) + 1
  )


def _log(
  users: np.ndarray,
  items: np.ndarray,
  times: np.ndarray,
  *,
  num_users: int,
  num_items: int,
) -> EventLog:
  """An EventLog whose ids and texts are all the same empty string."""
  none = lambda size: np.broadcast_to(np.array(''), size + 1)
  of_item = none(num_items)
  return EventLog(
    users=users,
    items=items,
    times=times - times[0],
    user_ids=none(num_users),
    item_ids=of_item,
    titles=of_item,
    categories=of_item,
    brands=of_item,
    train_end=len(users),
    validation_end=len(users),
    start_time=0,
    counts={},
    source='drawn at random',
    simulated=True,
    fingerprint='',
  )


def texts(log: EventLog, llm_dim: int) -> tuple[np.ndarray, FacetBank]:
  """Random embeddings of the items, and four profiles of each user.

  Args:
    log: the log.
    llm_dim: width of an embedding; 0 where the system reads no texts.

  Returns:
    f16[items + 1, llm_dim] and the bank.
  """
  rng = np.random.default_rng(1)

  def embedding(rows: int) -> np.ndarray:
    # Some rows are drawn and repeated, which costs less than drawing all; what
    # they hold does not matter.
    some = rng.standard_normal((min(rows, _TEXTS), llm_dim), np.float32)
    scaled = (some * max(1, llm_dim) ** -0.5).astype(np.float16)
    return np.resize(scaled, (rows, llm_dim))

  profiles = _PROFILES if llm_dim else 0
  num_texts = min(_TEXTS, 4 * profiles * log.num_users) + 1
  first = rng.integers(
    1, _DAYS // _WINDOW_DAYS - _PROFILES, log.num_users, dtype=np.int32
  )
  closes = first[:, None] + np.arange(profiles, dtype=np.int32)
  return embedding(log.num_items + 1), FacetBank(
    texts=embedding(num_texts),
    offsets=np.append([0], profiles * np.arange(log.num_users + 1)).astype(
      np.int32
    ),
    closes=closes.reshape(-1) * np.int32(_WINDOW_DAYS * SECONDS_PER_DAY),
    index=rng.integers(
      min(1, num_texts - 1),
      num_texts,
      (profiles * log.num_users, 4),
      dtype=np.int32,
    ),
    longest=profiles,
  )
