"""The sigmoid cell against its equation in numpy."""

import jax
import numpy as np

from dynllm_jax.layers import rnn


def test_sigmoid_cell_is_its_equation():
  rng = np.random.default_rng(0)
  params = {
    'inputs': rng.normal(size=(2, 3)),
    'hidden': rng.normal(size=(3, 3)),
    'bias': rng.normal(size=3),
  }
  hidden, inputs = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
  found = rnn.rnn(params, hidden, rnn.project_inputs(params, inputs))
  for row, (h, x) in enumerate(zip(hidden, inputs)):
    total = x @ params['inputs'] + h @ params['hidden'] + params['bias']
    np.testing.assert_allclose(found[row], 1 / (1 + np.exp(-total)), rtol=1e-5)


def test_initial_weights_fit_the_cell():
  params = rnn.init_rnn(jax.random.key(0), 2, 3)
  np.testing.assert_allclose(
    params['hidden'] @ params['hidden'].T, np.eye(3), atol=1e-5
  )
  assert params['inputs'].shape == (2, 3)
