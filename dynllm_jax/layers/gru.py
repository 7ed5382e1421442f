"""A GRU cell as a pure function, its input product taken once for all steps."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.kernels.chain_kernel import Gates
from dynllm_jax.layers.mlp import normalize
from dynllm_jax.types import Array

# Weights of a GRU (Cho et al. 2014), gates in the order reset, update,
# candidate: `inputs` f32[input_dim, 3 dim], `hidden` f32[dim, 3 dim],
# `bias` f32[3 dim], `hidden_bias` f32[dim] (the candidate's, under the reset).
GRUParams = dict[str, Array]


def init_gru(key: Array, input_dim: int, dim: int) -> GRUParams:
  """Draws the weights: LeCun normal for inputs, orthogonal for the state."""
  keys = jax.random.split(key, 4)
  orthogonal = nn.initializers.orthogonal()
  return {
    'inputs': nn.initializers.lecun_normal()(keys[0], (input_dim, 3 * dim)),
    'hidden': jnp.concatenate(
      [orthogonal(k, (dim, dim)) for k in keys[1:]], axis=1
    ),
    'bias': jnp.zeros([3 * dim]),
    'hidden_bias': jnp.zeros([dim]),
  }


def project_inputs(params: GRUParams, inputs: Array) -> Array:
  """`W x + b` of the three gates, f32[..., input_dim] -> f32[..., 3 dim]."""
  return inputs @ params['inputs'] + params['bias']


def weights(params: GRUParams) -> tuple[Array, Array]:
  """What the hidden state is mixed by, f32[dim, 3 dim] and f32[3 dim]."""
  bias = params['hidden_bias']
  return params['hidden'], jnp.pad(bias, (2 * len(bias), 0))


def combine(hidden: Array, mixed: Gates, projected: Gates) -> Array:
  """The new state of the three gates.

  Args:
    hidden: f32[rows, dim].
    mixed: of each gate f32[rows, dim], from the hidden state.
    projected: of each gate f32[rows, dim], from the inputs.

  Returns:
    f32[rows, dim].
  """
  reset = nn.sigmoid(projected[0] + mixed[0])
  update = nn.sigmoid(projected[1] + mixed[1])
  candidate = jnp.tanh(projected[2] + reset * mixed[2])
  return (1 - update) * candidate + update * hidden


def gru(params: GRUParams, hidden: Array, projected: Array) -> Array:
  """One step.

  Args:
    params: the weights; `inputs` and `bias` are not read.
    hidden: f32[rows, dim].
    projected: f32[rows, 3 dim] of `project_inputs`.

  Returns:
    f32[rows, dim].
  """
  *gates, candidate = jnp.split(hidden @ params['hidden'], 3, axis=-1)
  mixed = (*gates, candidate + params['hidden_bias'])
  return combine(hidden, mixed, tuple(jnp.split(projected, 3, axis=-1)))


def normalized_gru(params: GRUParams, hidden: Array, projected: Array) -> Array:
  """`gru` with a normalized result, f32[rows, dim] (SPEC 3.4, 3.10)."""
  return normalize(gru(params, hidden, projected))


def normalized_combine(hidden: Array, mixed: Gates, projected: Gates) -> Array:
  """`combine` with a normalized result, f32[rows, dim]."""
  return normalize(combine(hidden, mixed, projected))
