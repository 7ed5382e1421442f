"""Builds the fixed inputs of a system from a prepared log."""

import numpy as np

from dynllm_jax.graph import temporal
from dynllm_jax.graph import training_graph
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import Inputs

_ROWS = 65_536  # of a table read at once


def build_inputs(
  log: EventLog,
  item_text: np.ndarray,
  facets: FacetBank,
  padding: int,
  train_graph: bool = False,
  sold: bool = False,
  whitening: bool = False,
) -> Inputs:
  """Indexes the log, on the host.

  Args:
    log: the prepared log.
    item_text: f16[items + 1, llm_dim].
    facets: of the log's users.
    padding: rows added to the log, as many as the largest batch has.
    train_graph: whether the graph of training pairs is built.
    sold: whether it is built which items have been sold by each event's time.
    whitening: whether the map is built that whitens texts.

  Returns:
    Inputs of numpy arrays.
  """
  times = log.times.astype(np.int32)
  known = np.unique(log.items[: log.train_end])
  mean = _mean(item_text, known)

  def padded(column: np.ndarray) -> np.ndarray:
    return np.pad(column.astype(np.int32), (0, padding), mode='edge')

  return Inputs(
    users=padded(log.users),
    items=padded(log.items),
    times=padded(times),
    user_graph=temporal.temporal_graph(
      log.users, log.items, times, log.num_users
    ),
    item_graph=temporal.temporal_graph(
      log.items, log.users, times, log.num_items
    ),
    same_time=temporal.same_time_items(log),
    train_events=np.asarray(log.train_end, np.int32),
    mean_return_days=np.asarray(
      training_graph.mean_return_days(log), np.float32
    ),
    item_text=item_text,
    text_mean=mean,
    facets=facets,
    num_users=log.num_users,
    num_items=log.num_items,
    train_graph=training_graph.train_graph(log) if train_graph else None,
    sold=padded(_sold(log)) if sold else None,
    text_whitening=_whitening(item_text, known, mean) if whitening else None,
  )


def _sold(log: EventLog) -> np.ndarray:
  """i32[events], the largest item of events not later than each event.

  Items are numbered in order of first appearance (SPEC 2.2): those up to it
  have been sold by then, all others will be later.
  """
  last = np.searchsorted(log.times, log.times, side='right') - 1
  return np.maximum.accumulate(log.items)[last]


def _mean(texts: np.ndarray, items: np.ndarray) -> np.ndarray:
  """f32[llm_dim], the mean of some rows of a table larger than memory.

  Args:
    texts: f16[items + 1, llm_dim].
    items: i32[n], the rows, ascending: those known when training ends. What is
      sold later would otherwise move every earlier score a little.
  """
  total = np.zeros(texts.shape[1])
  for start in range(0, len(items), _ROWS):
    rows = texts[items[start : start + _ROWS]]
    total += rows.sum(axis=0, dtype=np.float64)
  return (total / max(1, len(items))).astype(np.float32)


def _whitening(
  texts: np.ndarray, items: np.ndarray, mean: np.ndarray
) -> np.ndarray:
  """The symmetric map after which some rows have unit covariance.

  Directions that hardly vary would become noise, so that a hundredth of the
  mean variance is added to all of them.

  Args:
    texts: f16[items + 1, llm_dim].
    items: i32[n], the rows.
    mean: f32[llm_dim], of them.

  Returns:
    f32[llm_dim, llm_dim].
  """
  width = texts.shape[1]
  covariance = np.zeros((width, width))
  for start in range(0, len(items), _ROWS):
    rows = texts[items[start : start + _ROWS]].astype(np.float32) - mean
    covariance += rows.T @ rows
  covariance /= max(1, len(items))
  floor = 0.01 * np.trace(covariance) / width or 1.0
  values, vectors = np.linalg.eigh(covariance + floor * np.eye(width))
  return ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)
