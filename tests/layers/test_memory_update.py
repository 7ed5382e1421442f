"""The recurrent update of a side against SPEC 3.10, node by node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.layers import gru
from dynllm_jax.layers import memory_update
from dynllm_jax.layers.memory_update import MemoryUpdate
from dynllm_jax.types import EventBatch
from dynllm_jax.types import ROOM_FOR_ALL
from tests.testing import logs

DAY = 86_400
NUM_NODES, SIZE, DIM, MESSAGE = 4, 10, 3, 2


def encode(days):
  return jnp.stack([jnp.cos(days), jnp.sin(days)], axis=-1)


@jax.jit
def _step(params, hidden, inputs):
  return gru.normalized_gru(params, hidden, gru.project_inputs(params, inputs))


def events(seed):
  """A memory of four nodes, and events of three of them at equal times."""
  rng = np.random.default_rng(seed)
  nodes = rng.integers(1, 4, SIZE).astype(np.int32)  # node 4 has no event
  times = np.sort(rng.integers(6, 9, SIZE)).astype(np.int32) * DAY
  mask = rng.random(SIZE) < 0.8
  hidden = rng.normal(size=(SIZE, DIM)).astype(np.float32)
  messages = rng.normal(size=(SIZE, MESSAGE)).astype(np.float32)
  # Node 1 was last seen on day 2, node 4 on day 3, the others never.
  memory = memory_lib.write(
    memory_lib.empty(NUM_NODES, DIM, SIZE),
    jnp.array([1, 4] + [0] * (SIZE - 2)),
    jnp.asarray(rng.normal(size=(SIZE, DIM)), jnp.float32),
    jnp.array([2, 3] + [0] * (SIZE - 2)) * DAY,
  )
  return memory, nodes, times, mask, jnp.asarray(hidden), messages


def call_args(memory, nodes, times, mask, hidden, messages):
  """Arguments of the module, the events' columns as one batch."""
  batch = EventBatch(nodes, nodes, times, mask)
  return memory, nodes, batch, hidden, messages


def applied(module):
  """A function of the arguments of `apply`: the memory after the events."""

  def apply(*args):
    prepared = module.apply(*args)
    (after,) = memory_update.apply_all(ROOM_FOR_ALL, prepared)
    return after

  return apply


def oracle(params, merge_ties, memory, nodes, times, mask, hidden, messages):
  """{node: (state, time)} after the events."""
  last = {n: int(t) for n, t in enumerate(memory.time) if t >= 0}
  states = {}
  for node in sorted(set(nodes[mask].tolist())):
    own = [e for e in range(SIZE) if mask[e] and nodes[e] == node]
    groups = [[e] for e in own]
    if merge_ties:
      groups = [
        [e for e in own if times[e] == t]
        for t in sorted(set(times[own].tolist()))
      ]
    state = hidden[own[0]]
    for group in groups:
      time = int(times[group[0]])
      days = (time - last[node]) / DAY if node in last else 0.0
      inputs = np.concatenate(
        [np.mean(messages[group], axis=0), np.cos([days]), np.sin([days])]
      )
      state = _step(params, state[None], inputs[None].astype(np.float32))[0]
      last[node] = time
    states[node] = state, last[node]
  return states


@pytest.mark.parametrize('merge_ties', [True, False])
def test_update_is_node_by_node(merge_ties):
  module = MemoryUpdate(DIM, merge_ties)
  apply = jax.jit(applied(module), static_argnums=6)
  params = logs.random_params(module.init, *call_args(*events(0)), encode)
  for seed in range(4):
    args = events(seed)
    before = args[0]
    after = apply(params, *call_args(*args), encode)
    expected = oracle(params['params']['gru'], merge_ties, *args)
    initial = jnp.full(DIM, 9.0)
    old, new = (
      memory_lib.read(m, jnp.arange(NUM_NODES + 1), initial)
      for m in (before, after)
    )
    for node in range(NUM_NODES + 1):
      state, time = expected.get(node, (old[node], before.time[node]))
      np.testing.assert_allclose(new[node], state, atol=1e-5)
      assert int(after.time[node]) == int(time)


def test_a_node_without_an_event_is_encoded_as_no_time():
  module = MemoryUpdate(DIM)
  asked = []

  def note(days):
    asked.append(days)
    return encode(days)

  memory = memory_lib.empty(NUM_NODES, DIM, 2)
  args = call_args(
    memory,
    jnp.array([1, 1]),
    jnp.array([5, 8]) * DAY,
    jnp.ones(2, bool),
    jnp.zeros([2, DIM]),
    jnp.zeros([2, MESSAGE]),
  )
  params = logs.random_params(module.init, *args, encode)
  applied(module)(params, *args, note)
  assert asked[-1].tolist() == [0.0, 3.0]


def test_update_keeps_what_the_memory_had_where_nothing_is_due():
  memory, nodes, times, mask, hidden, messages = events(0)
  module = MemoryUpdate(DIM)
  args = call_args(memory, nodes, times, mask & False, hidden, messages)
  args = *args, encode
  params = logs.random_params(module.init, *args)
  after = jax.jit(applied(module), static_argnums=6)(params, *args)
  np.testing.assert_array_equal(after.time, memory.time)
  np.testing.assert_array_equal(after.state, memory.state)
