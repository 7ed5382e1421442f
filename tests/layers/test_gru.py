"""The GRU cell against Flax's, with the same weights."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.layers import gru
from dynllm_jax.layers.mlp import normalize

INPUT, DIM, ROWS = 3, 4, 5


def draw():
  """Parameters, states and inputs by chance."""
  rng = np.random.default_rng(0)
  params = gru.init_gru(jax.random.key(0), INPUT, DIM)
  # Biases start at zero, where a forgotten one would not show.
  params = {
    name: w + rng.normal(size=w.shape) / 3 if 'bias' in name else w
    for name, w in params.items()
  }
  return jax.tree.map(
    jnp.float32,
    (params, rng.normal(size=(ROWS, DIM)), rng.normal(size=(ROWS, INPUT))),
  )


def flax_params(params):
  """Gate by gate: r reset, z update, n candidate."""
  inputs, hidden, bias = (
    jnp.split(params[name], 3, axis=-1) for name in ('inputs', 'hidden', 'bias')
  )
  mapped = {}
  for gate, k in (('r', 0), ('z', 1), ('n', 2)):
    mapped[f'i{gate}'] = {'kernel': inputs[k], 'bias': bias[k]}
    mapped[f'h{gate}'] = {'kernel': hidden[k]}
  mapped['hn']['bias'] = params['hidden_bias']
  return {'params': mapped}


def test_step_is_flax_normalized():
  params, hidden, inputs = draw()
  expected, _ = nn.GRUCell(DIM).apply(flax_params(params), hidden, inputs)
  found = gru.normalized_gru(params, hidden, gru.project_inputs(params, inputs))
  np.testing.assert_allclose(found, normalize(expected), atol=1e-5)


def test_every_weight_is_learned():
  params, hidden, inputs = draw()
  grads = jax.jit(
    jax.grad(
      lambda params: jnp.sum(
        gru.normalized_gru(params, hidden, gru.project_inputs(params, inputs))
        ** 3
      )
    )
  )(params)
  assert set(grads) == {'inputs', 'hidden', 'bias', 'hidden_bias'}
  assert all(
    np.all(np.any(g.reshape(-1, g.shape[-1]), axis=0)) for g in grads.values()
  )


def test_state_weights_start_orthogonal():
  params = gru.init_gru(jax.random.key(1), INPUT, DIM)
  gates = jnp.split(params['hidden'], 3, axis=1)
  for gate in gates:
    np.testing.assert_allclose(gate @ gate.T, np.eye(DIM), atol=1e-5)
  assert not np.allclose(gates[0], gates[1])
