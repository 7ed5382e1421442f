"""Losses against the arithmetic of SPEC 3.9."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.objectives import losses

POSITIVE = jnp.array([1.0, -0.5, 2.0])
NEGATIVES = jnp.array([[0.0, 3.0], [0.25, -1.0], [2.0, 0.5]])
ALL = jnp.ones([3, 2], bool)
REAL = jnp.ones([3], bool)
RUNS = {
  'bpr': losses.bpr,
  'margin': lambda *args: losses.margin(*args, 0.7),
  'softmax': losses.softmax,
  'bce': losses.bce,
}


def one_pair(name, positive, negative):
  if name == 'bce':
    return -math.log(1 - 1 / (1 + math.exp(-negative)))
  if name == 'bpr':
    return -math.log(1 / (1 + math.exp(-(positive - negative))))
  return max(0.0, 0.7 - positive + negative)


def oracle(name, positive, negatives, allowed, mask):
  """The sum of a loss over the rows of a batch, by SPEC 3.9."""
  total = 0.0
  for row, y in enumerate(np.asarray(positive, float)):
    kept = [float(n) for n, a in zip(negatives[row], allowed[row]) if a]
    if not mask[row]:
      continue
    if name == 'softmax':
      top = math.exp(y)
      total -= math.log(top / (top + sum(map(math.exp, kept))))
      continue
    if name == 'bce':
      total -= math.log(1 / (1 + math.exp(-y)))
    if kept:
      total += sum(one_pair(name, y, n) for n in kept) / len(kept)
  return total


def test_every_loss_is_here():
  assert set(losses.LOSSES) == set(RUNS)


@pytest.mark.parametrize('name', losses.LOSSES)
@pytest.mark.parametrize(
  'allowed',
  [
    [[1, 1], [1, 1], [1, 1]],
    [[1, 0], [0, 1], [1, 1]],
    [[0, 0], [1, 1], [0, 1]],
    [[0, 0], [0, 0], [0, 0]],
  ],
)
@pytest.mark.parametrize('mask', [[1, 1, 1], [0, 1, 0], [0, 0, 0]])
def test_loss_is_a_sum_over_real_rows(name, allowed, mask):
  allowed, mask = jnp.array(allowed, bool), jnp.array(mask, bool)
  found = RUNS[name](POSITIVE, NEGATIVES, allowed, mask)
  expected = oracle(name, POSITIVE, NEGATIVES, allowed, mask)
  assert float(found) == pytest.approx(expected, abs=1e-6)


def test_bpr_by_hand():
  found = losses.bpr(
    jnp.array([2.0]),
    jnp.array([[2.0, 2.0 - math.log(3)]]),
    jnp.ones([1, 2], bool),
    jnp.array([True]),
  )
  # sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4.
  assert float(found) == pytest.approx(
    (-math.log(1 / 2) - math.log(3 / 4)) / 2, abs=1e-6
  )


def test_margin_wants_the_positive_above():
  args = jnp.array([[1.0]]), jnp.ones([1, 1], bool), jnp.array([True])
  assert float(losses.margin(jnp.array([3.0]), *args, 0.5)) == 0.0
  assert float(losses.margin(jnp.array([1.0]), *args, 0.5)) == 0.5
  assert float(losses.margin(jnp.array([0.0]), *args, 0.5)) == 1.5


def test_softmax_by_hand():
  found = losses.softmax(
    jnp.array([math.log(2)]),
    jnp.array([[math.log(3), math.log(5), 9.0]]),
    jnp.array([[True, True, False]]),
    jnp.array([True]),
  )
  assert float(found) == pytest.approx(-math.log(2 / (2 + 3 + 5)), abs=1e-6)


@pytest.mark.parametrize('power', [0.3, 1.0])
def test_a_power_weighs_an_event_by_its_probability(power):
  args = NEGATIVES[:1], ALL[:1], REAL[:1]
  value, slope = jax.value_and_grad(losses.softmax)(POSITIVE[:1], *args, power)
  plain, plain_slope = jax.value_and_grad(losses.softmax)(POSITIVE[:1], *args)
  p = math.exp(-float(plain))
  assert float(value) == pytest.approx((1 - p**power) / power, rel=1e-6)
  assert float(slope[0]) == pytest.approx(
    p**power * float(plain_slope[0]), rel=1e-5
  )


def test_a_power_leaves_out_what_softmax_leaves_out():
  allowed = jnp.array([[True, False], [False, False], [True, True]])
  found = losses.softmax(
    POSITIVE, NEGATIVES, allowed, jnp.array([True, True, False]), 0.5
  )
  p = 1 / (1 + math.exp(-1.0))  # of the second row's own item alone, 1
  assert float(found) == pytest.approx((1 - p**0.5) / 0.5, abs=1e-6)


def test_bce_by_hand():
  found = losses.bce(
    jnp.array([0.0]),
    jnp.array([[math.log(3), 0.0, 7.0]]),
    jnp.array([[True, True, False]]),
    jnp.array([True]),
  )
  # sigmoid(0) = 1/2 and 1 - sigmoid(log 3) = 1/4.
  assert float(found) == pytest.approx(
    -math.log(1 / 2) - (math.log(1 / 4) + math.log(1 / 2)) / 2, abs=1e-6
  )


# The positive of a cross-entropy over single items stands without rivals.
@pytest.mark.parametrize('name', sorted(set(losses.LOSSES) - {'bce'}))
def test_without_an_allowed_negative_there_is_no_loss(name):
  none = jnp.zeros([3, 2], bool)
  total, grads = jax.value_and_grad(RUNS[name], argnums=(0, 1))(
    POSITIVE, NEGATIVES, none, REAL
  )
  assert float(total) == pytest.approx(0.0, abs=1e-6)
  assert not any(np.any(grad) for grad in grads)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_masked_entries_do_not_matter(name):
  allowed = jnp.array([[True, False], [True, True], [False, True]])
  mask = jnp.array([True, False, True])
  run = jax.value_and_grad(RUNS[name], argnums=(0, 1))
  low = POSITIVE - 2
  one = run(low, NEGATIVES, allowed, mask)
  two = run(
    jnp.where(mask, low, 50.0),
    jnp.where(allowed & mask[:, None], NEGATIVES, -60.0),
    allowed,
    mask,
  )
  jax.tree.map(np.testing.assert_array_equal, one, two)
  positive, negative = one[1]
  assert not np.any(positive[1]) and np.any(positive[0])
  assert not np.any(np.asarray(negative)[~np.asarray(allowed)])


@pytest.mark.parametrize('name', losses.LOSSES)
def test_far_scores_stay_finite(name):
  far = jnp.array([[1e4, -1e4]])
  for positive in (-1e4, 1e4):
    total, grads = jax.value_and_grad(RUNS[name], argnums=(0, 1))(
      jnp.array([positive]), far, jnp.ones([1, 2], bool), REAL[:1]
    )
    assert np.isfinite(total) and total >= 0
    assert all(np.all(np.isfinite(grad)) for grad in grads)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_a_higher_positive_is_never_worse(name):
  run = lambda y: float(
    RUNS[name](jnp.array([y]), jnp.array([[0.3, -0.2]]), ALL[:1], REAL[:1])
  )
  values = [run(y) for y in np.linspace(-3, 3, 13)]
  assert values == sorted(values, reverse=True)
  assert values[0] > values[-1]
