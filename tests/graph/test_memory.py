"""Node memory: what is written is read, and where gradients go (SPEC 3.3)."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.graph import memory as memory_lib

NUM_NODES = 4
INITIAL = jnp.array([7.0, 8.0])
EVERY = jnp.arange(NUM_NODES + 1)
# A batch's rows: distinct nodes, 0 for none.
WRITES = st.lists(
  st.permutations([0, 0, 1, 2, 3, 4]).map(lambda nodes: nodes[:3]),
  min_size=1,
  max_size=4,
)

_read, _write = jax.jit(memory_lib.read), jax.jit(memory_lib.write)


def rows_of(value):
  return jnp.array([[value, -value], [value + 1, 0.0], [value + 2, 2.0]])


@given(WRITES)
@settings(max_examples=60)
def test_read_returns_what_was_last_written(writes):
  memory = memory_lib.empty(NUM_NODES, 2, 3)
  known = {}
  for number, nodes in enumerate(writes):
    rows, times = rows_of(10.0 * number), jnp.arange(3) + 10 * number
    memory = _write(memory, jnp.array(nodes), rows, times)
    known.update(
      {
        node: (rows[k].tolist(), 10 * number + k)
        for k, node in enumerate(nodes)
        if node
      }
    )
    found = _read(memory, EVERY, INITIAL)
    for node in range(NUM_NODES + 1):
      state, time = known.get(node, (INITIAL.tolist(), -1))
      assert found[node].tolist() == state
      assert int(memory.time[node]) == time
    assert not np.any(memory.state[0]) and int(memory.time[0]) == -1
  memory = memory_lib.reset(memory)
  np.testing.assert_array_equal(
    _read(memory, EVERY, INITIAL), jnp.tile(INITIAL, (NUM_NODES + 1, 1))
  )
  np.testing.assert_array_equal(memory.time, [-1] * (NUM_NODES + 1))


def test_after_a_reset_only_the_new_epoch_is_read():
  memory = memory_lib.empty(NUM_NODES, 2, 3)
  times = jnp.array([3, 3, 3])
  memory = _write(memory, jnp.array([1, 2, 3]), rows_of(1.0), times)
  memory = _write(
    memory_lib.reset(memory), jnp.array([4, 1, 0]), rows_of(5.0), times
  )
  np.testing.assert_array_equal(
    _read(memory, EVERY, INITIAL),
    [INITIAL, [6.0, 0.0], INITIAL, INITIAL, [5.0, -5.0]],
  )


def test_read_keeps_the_shape_of_the_nodes():
  memory = memory_lib.empty(NUM_NODES, 2, 3)
  assert _read(memory, jnp.zeros([2, 3, 1], jnp.int32), INITIAL).shape == (
    2,
    3,
    1,
    2,
  )


def test_gradients_reach_the_latest_rows_and_the_initial_state_alone():
  def states(first, second, initial, table):
    memory = memory_lib.empty(NUM_NODES, 2, 3)
    # An earlier batch left its rows in the table.
    memory = memory.replace(
      state=memory.state + table, time=memory.time.at[4].set(2)
    )
    times = jnp.array([3, 4, 5])
    memory = memory_lib.write(memory, jnp.array([1, 2, 0]), first, times)
    memory = memory_lib.write(memory, jnp.array([3, 0, 2]), second, times)
    return memory_lib.read(memory, EVERY, initial)

  args = rows_of(1.0), rows_of(5.0), INITIAL, jnp.ones(2)
  np.testing.assert_array_equal(
    states(*args), [INITIAL, args[0][0], args[1][2], args[1][0], [1.0, 1.0]]
  )
  first, second, initial, table = jax.jacobian(
    lambda *args: states(*args)[..., 0].sum(-1), argnums=(0, 1, 2, 3)
  )(*args)
  # Nodes 1 and 4 are rows of the table, of which only the values are left.
  assert not np.any(first) and not np.any(table)
  np.testing.assert_array_equal(second, [[1, 0], [0, 0], [1, 0]])
  np.testing.assert_array_equal(initial, [1, 0])  # of padding alone


def test_rows_without_an_update_write_nothing():
  memory = memory_lib.empty(NUM_NODES, 2, 3)
  memory = _write(
    memory, jnp.array([1, 2, 3]), rows_of(1.0), jnp.array([3, 4, 5])
  )
  after = _write(
    memory, jnp.zeros(3, jnp.int32), rows_of(9.0), jnp.array([6, 7, 8])
  )
  np.testing.assert_array_equal(after.time, memory.time)
  np.testing.assert_array_equal(
    _read(after, EVERY, INITIAL), _read(memory, EVERY, INITIAL)
  )


def test_states_may_be_kept_in_half_precision():
  def states(rows):
    memory = memory_lib.empty(NUM_NODES, 2, 3, 'float16')
    times = jnp.array([3, 4, 5])
    memory = memory_lib.write(memory, jnp.array([1, 2, 0]), rows, times)
    assert memory.state.dtype == jnp.float16
    return memory_lib.read(memory, EVERY, INITIAL)

  rows = rows_of(1 / 3)
  found = states(rows)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found[0], INITIAL)  # it is no state of a table
  np.testing.assert_array_equal(
    found[1:3], np.asarray(rows[:2], np.float16).astype(np.float32)
  )
  # A gradient passes by the rounding.
  gradient = jax.grad(lambda rows: jnp.sum(states(rows)))(rows)
  np.testing.assert_array_equal(gradient, [[1, 1], [1, 1], [0, 0]])
