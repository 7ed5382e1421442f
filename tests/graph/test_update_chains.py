"""The ordered update of memory against SPEC 3.10, applied node by node."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllm_jax.graph import memory as memory_lib
from dynllm_jax.graph import update_chains

NUM_NODES, SIZE, WIDTH, MESSAGE = 4, 12, 3, 2

EVENTS = st.tuples(
  st.lists(
    st.tuples(
      st.integers(1, NUM_NODES),
      st.integers(5, 9),
      st.booleans() | st.just(True),
    ),
    min_size=SIZE,
    max_size=SIZE,
  ).map(lambda events: sorted(events, key=lambda event: event[1])),
  st.integers(0, 2**16),
)


def cell(params, hidden, inputs):
  """Any recurrent cell will do; this one does not commute with itself."""
  return jnp.tanh(hidden @ params['hidden'] + inputs @ params['inputs'])


CELL = update_chains.Cell(cell)


def encode(gap):
  return 1 / (1 + gap)


def draw(seed, size):
  rng = np.random.default_rng(seed)
  values = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    'hidden': values(WIDTH, WIDTH),
    'inputs': values(MESSAGE + 1, WIDTH),
  }
  return params, values(size, WIDTH), values(size, MESSAGE)


def ordered_update(
  params, hidden, messages, nodes, times, mask, last_times, merge_ties
):
  """SPEC 3.10 on the package's functions: states and the chains."""
  chain = update_chains.make_chains(
    *map(jnp.asarray, (nodes, times, mask, last_times)), merge_ties
  )
  gap = jnp.where(
    chain.previous_times >= 0, chain.times - chain.previous_times, 0
  )
  inputs = jnp.concatenate(
    [
      update_chains.mean_by_update(chain, messages),
      encode(gap.astype(jnp.float32))[:, None],
    ],
    axis=1,
  )
  side = update_chains.Side(params, hidden[chain.first_event], inputs, chain)
  (states,) = update_chains.run_chains((CELL,), (side,))
  return states, chain


_ordered_update = jax.jit(ordered_update, static_argnums=7)


def oracle(
  params, hidden, messages, nodes, times, mask, last_times, merge_ties
):
  """{node: (last state, last time)}, and every state, node by node."""
  final, states = {}, []
  for node in sorted(set(nodes[mask].tolist())):
    own = [e for e in range(len(nodes)) if mask[e] and nodes[e] == node]
    state, last = hidden[own[0]], int(last_times[own[0]])
    updates = [[e] for e in own]
    if merge_ties:
      updates = [
        [e for e in own if times[e] == t]
        for t in sorted(set(times[own].tolist()))
      ]
    for update in updates:
      time = int(times[update[0]])
      message = sum(messages[e] for e in update) / len(update)
      gap = time - last if last >= 0 else 0
      inputs = jnp.append(jnp.asarray(message), encode(float(gap)))
      state = cell(params, state, inputs)
      last = time
      states.append((node, time, state))
    final[node] = state, last
  return final, states


def columns(events):
  nodes, times, mask = zip(*events)
  return (np.array(nodes, np.int32), np.array(times, np.int32), np.array(mask))


def last_times_of(nodes):
  """Node 1 has no earlier event; node k was last seen at k."""
  return np.where(nodes == 1, -1, nodes).astype(np.int32)


@pytest.mark.parametrize('merge_ties', [True, False])
@given(drawn=EVENTS)
@settings(max_examples=30)
def test_ordered_update_is_node_by_node(merge_ties, drawn):
  events, seed = drawn
  params, hidden, messages = draw(seed, SIZE)
  rows = columns(events)
  args = (params, hidden, messages, *rows, last_times_of(rows[0]), merge_ties)
  states, chain = _ordered_update(*args)
  final, every = oracle(*args)
  assert int(chain.num_updates) == len(every)
  for k, (node, time, state) in enumerate(every):
    assert (chain.nodes[k], chain.times[k]) == (node, time)
    np.testing.assert_allclose(states[k], state, atol=1e-5)
  last = np.flatnonzero(chain.last)
  assert {int(chain.nodes[k]): int(chain.times[k]) for k in last} == {
    node: time for node, (_, time) in final.items()
  }
  assert len(last) == len(final)
  unused = np.arange(SIZE) >= len(every)
  assert not np.any(np.asarray(states)[unused])
  assert not np.any(np.asarray(chain.nodes)[unused])


def test_a_tie_is_one_update_of_the_mean_or_one_each():
  nodes, times = np.array([3, 3], np.int32), np.array([7, 7], np.int32)
  params = {
    'hidden': np.eye(WIDTH, dtype=np.float32),
    'inputs': np.ones((MESSAGE + 1, WIDTH), np.float32),
  }
  hidden = np.array([[0.5] * WIDTH, [9.0] * WIDTH], np.float32)
  messages = np.array([[0.1, 0.2], [0.3, 0.6]], np.float32)
  args = (
    params,
    hidden,
    messages,
    nodes,
    times,
    np.ones(2, bool),
    np.array([4, 4], np.int32),
  )
  states, chain = _ordered_update(*args, True)
  assert int(chain.num_updates) == 1
  one = np.tanh(0.5 + (0.1 + 0.3) / 2 + (0.2 + 0.6) / 2 + 1 / (1 + 7 - 4))
  np.testing.assert_allclose(states[0], [one] * WIDTH, rtol=1e-5)
  states, chain = _ordered_update(*args, False)
  assert int(chain.num_updates) == 2
  first = np.tanh(0.5 + 0.1 + 0.2 + 1 / (1 + 7 - 4))
  second = np.tanh(first + 0.3 + 0.6 + 1 / (1 + 7 - 7))
  np.testing.assert_allclose(
    states, [[first] * WIDTH, [second] * WIDTH], rtol=1e-5
  )


def gradients(run, args, compiler=lambda run: run):
  params, hidden, messages, *rest = args
  return compiler(
    jax.grad(lambda *learned: run(*learned, *rest), argnums=(0, 1, 2))
  )(params, hidden, messages)


def weighted(states):
  """A sum to which every state contributes in its own way."""
  return sum(
    jnp.sum(jnp.cos(state * (1 + k % 7))) for k, state in enumerate(states)
  )


def chain_total(*args):
  states, chain = ordered_update(*args)
  weight = jnp.arange(len(states)) % 7 + 1.0
  used = jnp.arange(len(states)) < chain.num_updates
  return jnp.sum(
    jnp.where(used[:, None], jnp.cos(states * weight[:, None]), 0.0)
  )


def oracle_total(*args):
  return weighted([state for _, _, state in oracle(*args)[1]])


@pytest.mark.parametrize('merge_ties', [True, False])
@pytest.mark.parametrize('seed', range(2))
def test_gradients_are_those_of_the_unrolled_loop(merge_ties, seed):
  rng = np.random.default_rng(seed)
  rows = columns(
    list(
      zip(
        rng.integers(1, 4, SIZE),
        np.sort(rng.integers(5, 9, SIZE)),
        rng.random(SIZE) < 0.8,
      )
    )
  )
  args = (*draw(seed, SIZE), *rows, last_times_of(rows[0]), merge_ties)
  found = gradients(chain_total, args, jax.jit)
  expected = gradients(oracle_total, args)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected
  )
  # Hidden states of first updates alone, and nothing of a masked event.
  assert not np.any(found[1][~rows[2]]) and not np.any(found[2][~rows[2]])
  nodes = rows[0][rows[2]]
  assert np.any(found[1], axis=1).sum() == len(set(nodes.tolist()))


def test_a_round_of_more_rows_than_a_block():
  # Nodes 1 to 150 once, then 1 to 140 again, then node 7 many times more.
  nodes = np.array([*range(1, 151), *range(1, 141), *[7] * 10], np.int32)
  size = len(nodes)
  assert update_chains.BLOCK < 140
  times = np.arange(size, dtype=np.int32) // 5 + 150
  args = (
    *draw(0, size),
    nodes,
    times,
    np.ones(size, bool),
    np.full(size, -1, np.int32),
    True,
  )
  states, chain = _ordered_update(*args)
  _, every = oracle(*args)
  assert int(chain.num_updates) == len(every) == 150 + 140 + 2
  np.testing.assert_allclose(
    states[: len(every)], np.array([s for _, _, s in every]), atol=1e-5
  )


def test_gradients_through_more_rows_than_a_block(monkeypatch):
  monkeypatch.setattr(update_chains, 'BLOCK', 4)
  nodes = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 1, 1, 1], np.int32)
  size = len(nodes)
  args = (
    *draw(5, size),
    nodes,
    np.arange(5, 5 + size, dtype=np.int32),
    np.ones(size, bool),
    last_times_of(nodes),
    True,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    gradients(chain_total, args, jax.jit),
    gradients(oracle_total, args),
  )


def test_a_batch_of_padding_has_no_update():
  zeros = np.zeros(SIZE, np.int32)
  params, hidden, messages = draw(0, SIZE)
  states, chain = _ordered_update(
    params, hidden, messages, zeros, zeros, zeros > 0, zeros - 1, True
  )
  assert int(chain.num_updates) == 0
  assert not np.any(states) and not np.any(chain.last)


def test_one_batch_or_two_where_no_node_repeats():
  nodes = np.array([4, 2, 6, 1, 5, 3], np.int32)
  times = np.array([5, 5, 6, 7, 7, 8], np.int32)
  params, hidden, messages = draw(1, 6)

  def play(masks):
    memory = memory_lib.empty(6, WIDTH, 6)
    for mask in masks:
      states, chain = _ordered_update(
        params,
        hidden,
        messages,
        nodes,
        times,
        np.array(mask, bool),
        memory.time[nodes],
        True,
      )
      memory = memory_lib.write(
        memory, jnp.where(chain.last, chain.nodes, 0), states, chain.times
      )
    return memory

  whole = play([[1] * 6])
  parts = play([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
  np.testing.assert_array_equal(whole.time, parts.time)
  np.testing.assert_allclose(whole.state, parts.state, atol=1e-6)
  assert np.all(np.asarray(whole.time)[1:] >= 5)


def test_one_batch_or_many_where_nodes_repeat():
  """A batch for each time, the state read back, is the chain of one batch."""
  rng = np.random.default_rng(3)
  nodes = rng.integers(1, 4, SIZE).astype(np.int32)
  times = np.sort(rng.integers(5, 9, SIZE)).astype(np.int32)
  params, _, messages = draw(3, SIZE)
  initial = jnp.array([0.1, 0.2, 0.3])

  def play(masks):
    memory = memory_lib.empty(3, WIDTH, SIZE)
    for mask in masks:
      states, chain = _ordered_update(
        params,
        memory_lib.read(memory, nodes, initial),
        messages,
        nodes,
        times,
        mask,
        memory.time[nodes],
        True,
      )
      memory = memory_lib.write(
        memory, jnp.where(chain.last, chain.nodes, 0), states, chain.times
      )
    return memory

  whole = play([np.ones(SIZE, bool)])
  parts = play([times == t for t in sorted(set(times.tolist()))])
  np.testing.assert_array_equal(whole.time, parts.time)
  np.testing.assert_allclose(whole.state, parts.state, atol=1e-5)


def test_a_gradient_reaches_the_cell_through_memory():
  params, hidden, messages = draw(2, SIZE)
  nodes = np.array([1, 2] * (SIZE // 2), np.int32)
  times = np.arange(SIZE, dtype=np.int32)

  def total(params):
    memory = memory_lib.empty(NUM_NODES, WIDTH, SIZE)
    states, chain = ordered_update(
      params, hidden, messages, nodes, times, times >= 0, times * 0 - 1, True
    )
    memory = memory_lib.write(
      memory, jnp.where(chain.last, chain.nodes, 0), states, chain.times
    )
    return jnp.sum(
      memory_lib.read(memory, jnp.arange(NUM_NODES + 1), jnp.zeros(WIDTH))
    )

  def expected(params):
    final, _ = oracle(
      params, hidden, messages, nodes, times, times >= 0, times * 0 - 1, True
    )
    return sum(jnp.sum(state) for state, _ in final.values())

  np.testing.assert_allclose(total(params), expected(params), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    jax.grad(total)(params),
    jax.grad(expected)(params),
  )


def side_of(seed, nodes):
  """A side whose events are at times 0, 1, ...; node 0 stands for no event."""
  nodes = np.asarray(nodes, np.int32)
  params, hidden, messages = draw(seed, len(nodes))
  chain = update_chains.make_chains(
    nodes,
    np.arange(len(nodes), dtype=np.int32),
    nodes > 0,
    np.full_like(nodes, -1),
  )
  inputs = jnp.pad(messages, [(0, 0), (0, 1)])
  return update_chains.Side(params, hidden, inputs, chain)


@pytest.mark.parametrize(
  'nodes',
  [
    ([1, 2, 3, 1, 2, 1, 4, 1, 1, 0], [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]),
    ([1] * 10, [0] * 10),  # a chain as long as the batch; nothing to do
    ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]),
  ],
)
def test_sides_step_together_as_they_do_apart(monkeypatch, nodes):
  monkeypatch.setattr(update_chains, 'BLOCK', 2)
  monkeypatch.setattr(update_chains, 'WIDE_BLOCK', 4)
  sides = tuple(side_of(seed, of_side) for seed, of_side in enumerate(nodes))

  def run(sides):
    weights = jnp.arange(10.0)[:, None]
    states = update_chains.run_chains((CELL, CELL), sides)
    return sum(jnp.sum(jnp.cos(s * weights)) for s in states), states

  gradient = jax.grad(run, has_aux=True, allow_int=True)
  expected = gradient(sides)
  monkeypatch.setattr(
    jax.lax,
    'platform_dependent',
    lambda *args, cpu, default, **others: default(*args),
  )
  found = gradient(sides)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    if a.dtype == np.float32:
      np.testing.assert_allclose(a, b, atol=1e-6)
