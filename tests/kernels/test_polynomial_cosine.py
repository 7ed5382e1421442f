"""The polynomials against numpy in float64."""

import numpy as np

from dynllm_jax.kernels.polynomial_cosine import cos_sin_turns


def test_cosine_and_sine_of_turns_are_accurate():
  turns = np.concatenate(
    [
      np.linspace(-2.5, 2.5, 4001),
      np.linspace(-3e4, 3e4, 1001),
      [0.5, -0.5, 0.25, 1e6],
    ]
  ).astype(np.float32)
  phases = 2 * np.pi * turns.astype(float)
  cos, sin = cos_sin_turns(turns)
  np.testing.assert_allclose(cos, np.cos(phases), atol=1.5e-6)
  np.testing.assert_allclose(sin, np.sin(phases), atol=1.5e-6)
