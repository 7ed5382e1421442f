"""The time encoding against the formula of SPEC 3.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.layers.time_encoding import TimeEncoding

HOUR, TEN_YEARS = 1 / 24, 10 * 365.25  # days
DIM = 12


@pytest.fixture(name='layer', scope='module')
def fixture_layer():
  module = TimeEncoding(DIM)
  params = module.init(jax.random.key(0), jnp.zeros([1]))
  return params, jax.jit(module.apply)


def formula(frequencies, days):
  """Interleaved cosine and sine in float64."""
  phase = np.asarray(days, float)[..., None] * np.asarray(frequencies, float)
  pairs = np.stack([np.cos(phase), np.sin(phase)], axis=-1)
  return pairs.reshape(*phase.shape[:-1], -1) / np.sqrt(phase.shape[-1])


def frequencies_of(params):
  return np.exp(np.asarray(params['params']['log_time_frequencies'], float))


def test_encoding_is_the_formula(layer):
  params, apply = layer
  days = np.array([[0.0, 0.01, 1 / 24], [0.3, 1.0, 2.5]], np.float32)
  found = apply(params, days)
  assert found.shape == (2, 3, DIM)
  np.testing.assert_allclose(
    found, formula(frequencies_of(params), days), atol=2e-5
  )


def test_long_times_are_as_good_as_the_float32_argument(layer):
  params, apply = layer
  days = np.array([400.0, 3000.0], np.float32)
  frequencies = np.asarray(frequencies_of(params), float)
  # The error of a phase of float32, three roundings deep.
  phase = days[:, None] * np.repeat(frequencies, 2)
  allowed = 3 * phase * 2.0**-24 + 2e-6
  assert allowed[:, -1].max() < 1e-4  # the slow half is good at any time
  error = np.abs(apply(params, days) - formula(frequencies, days))
  assert np.all(error <= allowed)


def test_zero_days_are_ones_and_zeros(layer):
  params, apply = layer
  np.testing.assert_allclose(
    apply(params, jnp.zeros([])),
    np.tile([1 / np.sqrt(DIM / 2), 0], DIM // 2),
    atol=1e-6,
  )


def test_every_encoding_has_norm_one(layer):
  params, apply = layer
  days = np.linspace(0, 700, 50, dtype=np.float32)
  np.testing.assert_allclose(
    np.sum(np.square(apply(params, days)), axis=-1), np.ones(50), atol=1e-5
  )


def test_periods_run_geometrically_from_an_hour_to_ten_years(layer):
  params, _ = layer
  periods = 2 * np.pi / np.asarray(frequencies_of(params), float)
  assert len(periods) == DIM // 2
  ratio = (TEN_YEARS / HOUR) ** (1 / (DIM // 2 - 1))
  np.testing.assert_allclose(
    periods, [HOUR * ratio**k for k in range(DIM // 2)], rtol=1e-5
  )


def test_a_width_of_two_is_one_frequency():
  module = TimeEncoding(2)
  params = module.init(jax.random.key(0), jnp.zeros([1]))
  assert module.apply(params, jnp.zeros([3])).shape == (3, 2)
  assert frequencies_of(params).shape == (1,)


def test_gradients_reach_frequencies_and_days(layer):
  params, _ = layer
  module = TimeEncoding(DIM)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, DIM)))
  days = jnp.array([0.0, 0.02, 0.5, 1.5])

  def ours(frequencies, days):
    return jnp.sum(
      weights
      * module.apply(
        {'params': {'log_time_frequencies': jnp.log(frequencies)}}, days
      )
    )

  def reference(frequencies, days):
    phase = days[:, None] * frequencies
    pairs = jnp.stack([jnp.cos(phase), jnp.sin(phase)], -1)
    return jnp.sum(weights * pairs.reshape(4, DIM)) / (DIM / 2) ** 0.5

  args = frequencies_of(params), days
  for one, two in zip(
    jax.grad(ours, (0, 1))(*args), jax.grad(reference, (0, 1))(*args)
  ):
    assert np.any(two)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
