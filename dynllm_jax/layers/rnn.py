"""A plain recurrent cell with a sigmoid (JODIE, DyRep)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from dynllm_jax.kernels.chain_kernel import Gates
from dynllm_jax.types import Array

# Weights of the cell: `inputs` f32[input_dim, dim], `hidden` f32[dim, dim],
# `bias` f32[dim].
RNNParams = dict[str, Array]


def init_rnn(key: Array, input_dim: int, dim: int) -> RNNParams:
  """Draws the weights: LeCun normal for inputs, orthogonal for the state."""
  keys = jax.random.split(key)
  return {
    'inputs': nn.initializers.lecun_normal()(keys[0], (input_dim, dim)),
    'hidden': nn.initializers.orthogonal()(keys[1], (dim, dim)),
    'bias': jnp.zeros([dim]),
  }


def project_inputs(params: RNNParams, inputs: Array) -> Array:
  """`W x + b`, f32[..., input_dim] -> f32[..., dim]."""
  return inputs @ params['inputs'] + params['bias']


def rnn(params: RNNParams, hidden: Array, projected: Array) -> Array:
  """One step, `sigmoid(W x + b + U h)`.

  Args:
    params: the weights; `inputs` and `bias` are not read.
    hidden: f32[rows, dim].
    projected: f32[rows, dim] of `project_inputs`.

  Returns:
    f32[rows, dim].
  """
  return combine(hidden, (hidden @ params['hidden'],), (projected,))


def weights(params: RNNParams) -> tuple[Array, Array]:
  """What the hidden state is mixed by, f32[dim, dim] and f32[dim], zero."""
  return params['hidden'], jnp.zeros_like(params['bias'])


def combine(hidden: Array, mixed: Gates, projected: Gates) -> Array:
  """The new state of what one gate has from the state and from the inputs."""
  del hidden
  return nn.sigmoid(projected[0] + mixed[0])
