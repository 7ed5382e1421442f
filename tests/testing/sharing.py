"""Questions about rows, and events of a node's owner, on a mesh of eight.

Run by tests/parallel/test_owners.py in a process of its own, with eight fake
devices: `python -m tests.testing.sharing`. Each result is compared with that of
one device.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.graph import update_chains
from dynllm_jax.parallel import owners
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import OwnLimits
from dynllm_jax.types import PlannedBatch
from tests.testing import logs

ROWS, WIDTH, SIZE = 24, 3, 50  # of a table; of a batch


def ask(table, nodes, small):
  """`table[nodes]` of a table of two arrays, with few or many rounds."""
  sharded_table.SMALL_EXCHANGE = small
  return jax.jit(sharded_table.read_rows)(table, nodes)


def check_questions(mesh) -> None:
  """Even questions, and questions that are all for one device."""
  table = {
    'state': np.random.default_rng(0).normal(size=(ROWS, WIDTH)),
    'half': np.arange(ROWS, dtype=np.float16)[:, None] * np.ones((1, 5)),
    'seen': np.arange(ROWS) % 3 == 0,
  }
  table = jax.tree.map(jnp.asarray, table)
  rng = np.random.default_rng(1)
  for nodes, small in (
    (rng.integers(0, ROWS, (7, 13)).astype(np.int32), 0),
    (np.full(90, 5, np.int32), 0),
    (np.array([ROWS - 1, 0], np.int32), 1 << 18),
  ):
    expected = [np.asarray(x)[nodes] for x in table.values()]
    with sharded_table.use_mesh(mesh):
      found = ask(table, nodes, small)
    jax.tree.map(np.testing.assert_array_equal, list(found.values()), expected)


def check_sums(mesh) -> None:
  """Few rows, that are sent, and many, that are summed as a whole."""
  rng = np.random.default_rng(5)
  add_rows = jax.jit(sharded_table.add_rows, static_argnums=0)
  for num_rows, count in ((90, 30), (20, 300)):
    at = rng.integers(0, num_rows, count).astype(np.int32)
    at[rng.random(count) < 0.5] = num_rows // 2  # far from even
    at[rng.random(count) < 0.2] = sharded_table.NO_ROW
    values = rng.normal(size=(count, WIDTH)).astype(np.float32)
    expected = np.zeros([num_rows + 1, WIDTH])
    np.add.at(expected, np.minimum(at, num_rows), values)
    with sharded_table.use_mesh(mesh):
      found = add_rows(num_rows, at, values)
    np.testing.assert_allclose(found, expected[:-1], atol=1e-5)


def cell(params, hidden, inputs):
  """Any recurrent cell that does not commute with itself."""
  return jnp.tanh(hidden @ params + inputs)


def after(sides):
  """Chains of the events of one device."""
  ((shared, (nodes, mask, times), (hidden, messages), _),) = sides
  chain = update_chains.make_chains(
    nodes, times, mask, jnp.full_like(times, -1)
  )
  side = update_chains.Side(
    shared,
    hidden[chain.first_event],
    update_chains.mean_by_update(chain, messages),
    chain,
  )
  (states,) = update_chains.run_chains((update_chains.Cell(cell),), (side,))
  last = jnp.where(chain.last, chain.nodes, 0)
  return (owners.Written(last, states, chain.times),)


@functools.partial(jax.jit, static_argnums=5)
def final_states(params, nodes, mask, times, values, limits):
  """f32[rows, width], the state of each node after its events, by node."""

  def total(params, values):
    events = owners.Events(params, (nodes, mask, times), values, ROWS)
    ((own, states, _),) = owners.apply_own(after, (events,), limits)
    final = sharded_table.replicate(states)
    table = (
      jnp.zeros([ROWS, WIDTH])
      .at[jnp.where(own > 0, own, ROWS)]
      .set(final, mode='drop')
    )
    return jnp.sum(jnp.cos(3 * table)), table

  return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, values)


def check_events(mesh) -> None:
  """States and gradients, with the room of the plan and with less."""
  log = logs.random_log(
    2, num_users=ROWS - 1, num_items=ROWS - 1, num_events=SIZE, num_times=20
  )
  log = dataclasses.replace(log, items=log.users)  # limits are of both sides
  part = lambda x: np.asarray([x], np.int32)
  plan = PlannedBatch(part(0), part(SIZE), part(0), part(1) > 0)
  owners.STEP = 1
  limits = owners.limits_of(log, plan, SIZE, mesh)
  assert 1 < limits.events < SIZE and limits.sent > 1, limits

  rng = np.random.default_rng(3)
  values = [rng.normal(size=(SIZE, WIDTH)).astype(np.float32) for _ in range(2)]
  params = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
  events = (
    params,
    log.users,
    rng.random(SIZE) < 0.9,
    log.times.astype(np.int32),
    tuple(values),
  )
  expected = final_states(*events, OwnLimits())
  with sharded_table.use_mesh(mesh):
    for room in (limits, OwnLimits()):
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        jax.tree.map(np.asarray, final_states(*events, room)),
        expected,
      )
    # What does not fit is never left out in silence.
    whole = (*events[:2], np.ones(SIZE, bool), *events[3:])
    for little in (
      limits._replace(events=limits.events - 1),
      limits._replace(sent=limits.sent - 1),
    ):
      (_, states), _ = final_states(*whole, little)
      assert np.isnan(states).any(), little


def mesh_of(*shape: int) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(
    np.array(jax.devices()).reshape(shape), ('data', 'nodes')
  )


if __name__ == '__main__':
  jax.config.update('jax_default_matmul_precision', 'highest')
  check_questions(mesh_of(1, 8))
  check_sums(mesh_of(2, 4))
  check_events(mesh_of(4, 2))
  print('equal')
