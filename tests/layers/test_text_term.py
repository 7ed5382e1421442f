"""The text term against a loop over a user's past."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.graph import inputs as inputs_lib
from dynllm_jax.layers import text_term
from tests.testing import logs

DAY = 86_400
DEPTH, GAIN, DECAY = 3, 2.5, -0.7

PARAMS = {
  'params': {'gain': jnp.float32(GAIN / 10), 'decay': jnp.float32(DECAY)}
}
TERM = text_term.TextTerm(DEPTH)


def queries(log):
  """Every user, padding too, amid the log and after its end."""
  times = [int(log.times[0]), int(log.times[30]), int(log.times[-1]) + DAY]
  return [
    np.array(column, np.int32)
    for column in zip(
      *((user, time) for user in range(log.num_users + 1) for time in times)
    )
  ]


def direction(text, mean):
  rest = text.astype(np.float64) - mean
  return rest / np.linalg.norm(rest)


def test_the_term_is_a_loop_over_the_past():
  log = logs.random_log(1)
  inputs = logs.random_inputs(log)
  texts = np.asarray(inputs.item_text)
  mean = np.asarray(inputs.text_mean, np.float64)
  users, times = queries(log)
  found = np.asarray(jax.jit(TERM.apply)(PARAMS, inputs, users, times))
  lengths = set()
  for row, (user, time) in enumerate(zip(users, times)):
    past = [
      e
      for e in range(log.num_events)
      if log.users[e] == user and log.times[e] < time
    ][::-1][:DEPTH]
    lengths.add(len(past))
    total = sum(
      (1 + (time - log.times[e]) / DAY) ** DECAY
      * direction(texts[log.items[e]], mean)
      for e in past
    )
    expected = GAIN * total / np.linalg.norm(total) if past else 0.0
    np.testing.assert_allclose(
      found[row], np.broadcast_to(expected, found[row].shape), atol=1e-5
    )
  assert {0, DEPTH} <= lengths


def test_directions_of_items_have_norm_1_and_leave_out_the_mean():
  inputs = logs.random_inputs(logs.random_log(2))
  texts = np.asarray(inputs.item_text)
  mean = np.asarray(inputs.text_mean, np.float64)
  items = np.array([[3, 1], [1, 8]])
  found = np.asarray(text_term.item_directions(inputs, items))
  np.testing.assert_allclose(
    found,
    [[direction(texts[i], mean) for i in row] for row in items],
    atol=1e-5,
  )


def test_texts_that_are_all_alike_say_nothing_and_break_nothing():
  log = logs.random_log(3)
  inputs = logs.random_inputs(log)
  alike = inputs.replace(
    item_text=jnp.ones_like(inputs.item_text),
    text_mean=jnp.ones_like(inputs.text_mean),
  )
  users, times = queries(log)

  def total(params):
    return jnp.sum(TERM.apply(params, alike, users, times))

  value, grads = jax.value_and_grad(total)(PARAMS)
  assert value == 0
  assert all(math.isfinite(leaf) for leaf in jax.tree.leaves(grads))


def test_the_mean_is_of_the_items_of_training(monkeypatch):
  log = logs.random_log(4, num_items=40)
  known = sorted(set(log.items[: log.train_end].tolist()))
  assert set(log.items[log.train_end :].tolist()) - set(known)
  texts = (
    np.random.default_rng(0)
    .normal(size=(log.num_items + 1, 5))
    .astype(np.float16)
  )
  # Two directions that vary together, and one that varies more.
  texts[:, 1] += texts[:, 0]
  texts[:, 2] *= 8
  monkeypatch.setattr(inputs_lib, '_ROWS', 3)
  found = inputs_lib.build_inputs(
    log, texts, logs.random_bank(log, 5), padding=0, whitening=True
  )
  of_training = texts[known].astype(np.float64)
  np.testing.assert_allclose(
    found.text_mean, of_training.mean(axis=0), rtol=1e-5, atol=1e-6
  )
  centered = of_training - found.text_mean
  white = centered @ found.text_whitening
  before, after = (x.T @ x / len(known) for x in (centered, white))
  added = 0.01 * np.trace(before) / 5 * np.eye(5)
  expected = before @ np.linalg.inv(before + added)
  np.testing.assert_allclose(after, expected, atol=1e-4)

  directions = text_term.item_directions(found, np.array(known))
  norms = np.linalg.norm(white, axis=1, keepdims=True)
  np.testing.assert_allclose(directions, white / norms, atol=1e-2)
