"""The kernel of the ordered update, interpreted, against the loop."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import update_chains
from dynllm_jax.kernels import chain_kernel
from dynllm_jax.layers import gru
from dynllm_jax.layers import memory_update
from dynllm_jax.layers import rnn

SIZE, WIDTHS = 40, (16, 32)
CELLS = {
  'gru': (memory_update.NORMALIZED_GRU, memory_update.GRU),
  'rnn': (memory_update.RNN, memory_update.RNN),
}
RNG = np.random.default_rng(0)
# Nodes and times of the events; node 0 stands for an empty slot.
IN_TURN = np.arange(SIZE)
EVENTS = {
  'skewed': (RNG.zipf(1.5, SIZE) % 30, RNG.integers(1, 9, SIZE)),
  'one chain': (np.full(SIZE, 3), IN_TURN),
  'nobody': (np.zeros(SIZE), IN_TURN),
  'each once': (IN_TURN + 1, IN_TURN),
  'one time': (RNG.integers(0, 5, SIZE), np.full(SIZE, 7)),
}


def side_of(cell, width, nodes, times, seed):
  """A side with random weights and values."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = cell.init(jax.random.key(seed), 3, width)
  params = jax.tree.map(lambda x: normal(*x.shape) * 0.3, params)
  chain = update_chains.make_chains(
    nodes, times, nodes > 0, jnp.full([SIZE], -1)
  )
  gates = params['hidden'].shape[1]
  return update_chains.Side(
    params, normal(SIZE, width), normal(SIZE, gates), chain
  )


def states_and_gradients(cells, sides):
  def total(learned):
    filled = tuple(
      side._replace(params=p, hidden=h, inputs=x)
      for side, (p, h, x) in zip(sides, learned)
    )
    states = update_chains.run_chains(
      tuple(cell.recurrence for cell in cells), filled
    )
    weights = 1 + jnp.arange(SIZE)[:, None] % 7
    return sum(jnp.sum(jnp.cos(x * weights)) for x in states), states

  learned = tuple((x.params, x.hidden, x.inputs) for x in sides)
  return jax.grad(total, has_aux=True)(learned)


@pytest.fixture(scope='module')
def both_ways():
  """For the name of cells, by the loop and by the kernel: a compiled run."""

  @functools.cache
  def compiled(name):
    run = functools.partial(states_and_gradients, CELLS[name])
    sides = sides_of(name, *EVENTS['nobody'])
    loop = jax.jit(run).lower(sides).compile()
    interpreted = {
      way: functools.partial(getattr(chain_kernel, way), interpret=True)
      for way in ('forward', 'backward')
    }
    on_gpu = lambda *args, cuda, **others: cuda(*args)
    with (
      mock.patch.multiple(chain_kernel, **interpreted),
      mock.patch.object(jax.lax, 'platform_dependent', on_gpu),
    ):
      kernel = jax.jit(lambda sides: run(sides)).lower(sides).compile()
    return loop, kernel

  return compiled


def sides_of(name, nodes, times):
  order = np.argsort(times, kind='stable')
  nodes, times = (x[order].astype(np.int32) for x in (nodes, times))
  others = (nodes * 7 + IN_TURN // 5).astype(np.int32) % 11 * (nodes > 0)
  return tuple(
    side_of(cell, width, of_side.astype(np.int32), times, seed)
    for seed, (cell, width, of_side) in enumerate(
      zip(CELLS[name], WIDTHS, (nodes, others))
    )
  )


@pytest.mark.parametrize('name', CELLS)
@pytest.mark.parametrize('events', EVENTS)
def test_states_and_gradients_are_those_of_the_loop(both_ways, name, events):
  loop, kernel = both_ways(name)
  sides = sides_of(name, *EVENTS[events])
  expected, found = loop(sides), kernel(sides)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
  states = expected[1]
  assert (events == 'nobody') == (not np.any(states[0]))


@pytest.mark.parametrize(
  'module, cell', [(gru, gru.gru), (gru, gru.normalized_gru), (rnn, rnn.rnn)]
)
def test_both_forms_of_a_cell_are_one(module, cell):
  width, rows = 4, 5
  init = gru.init_gru if module is gru else rnn.init_rnn
  key = jax.random.key(0)
  params = init(key, 3, width)
  params = jax.tree.map(lambda x: x + 0.1, params)
  matrix, bias = module.weights(params)
  gates = matrix.shape[1] // width
  hidden = jax.random.normal(key, (rows, width))
  inputs = jax.random.normal(jax.random.key(1), (rows, gates * width))
  name = 'normalized_combine' if cell is gru.normalized_gru else 'combine'
  found = getattr(module, name)(
    hidden,
    tuple(jnp.split(hidden @ matrix + bias, gates, axis=1)),
    tuple(jnp.split(inputs, gates, axis=1)),
  )
  np.testing.assert_allclose(found, cell(params, hidden, inputs), rtol=1e-6)


def test_widths_that_the_kernel_is_made_for():
  assert chain_kernel.takes(128, 384) and chain_kernel.takes(16, 16)
  assert not chain_kernel.takes(256, 768)  # too much for shared memory
  assert not chain_kernel.takes(100, 300)  # Triton has powers of two alone
  assert not chain_kernel.takes(8, 24)  # it multiplies 16 rows by 16 at least
