"""Parameters of an earlier run as the start of another one (SPEC 4.4).

Users and items are matched by their ids: rows of a table by user or item go
where their node is now, and nodes that are new keep the rows that the
initializer has drawn. All else is taken over as it is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynllm_jax.datasets import loading
from dynllm_jax.runs import identity
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError
from dynllm_jax.types import Inputs
from dynllm_jax.types import Params
from dynllm_jax.types import TrainGraph
from dynllm_jax.types import TrainState

_MORE = 1009  # nodes; no axis has so many more by chance


def start_from(
  run: PreparedRun, state: TrainState, workdir: str
) -> tuple[TrainState, dict[str, Any]]:
  """A first state with the parameters of the best epoch of another run.

  Args:
    run: the run that begins.
    state: its state before training.
    workdir: the folder of the earlier run, of the same model; its prepared log
      is in this run's `data.dir`.

  Returns:
    The state, and where its parameters are from (status.py `started_from`).

  Raises:
    InputError: if there is no such run, it has another model, or its prepared
      log is gone.
  """
  folder = RunFolder(workdir)
  if jax.process_count() > 1:
    raise InputError(
      f'--init_from: {workdir!r} with {jax.process_count()} processes; '
      'allowed: one process'
    )
  if not (folder.path / 'checkpoints').is_dir():
    raise InputError(
      f'--init_from: {workdir!r} has no checkpoint; allowed: the folder of a '
      'run with --mode=train'
    )

  with Checkpoints(folder.path) as checkpoints:
    status = Status.from_json(checkpoints.status('best'))
    identity.check_start(status.identity, run.identity, workdir)
    arrays = checkpoints.arrays('best')
  log = loading.load_prepared(
    run.config.data, status.identity['data_fingerprint']
  )
  params = carry_over(run, state.params, arrays, log)
  return state.replace(params=params), {
    'workdir': workdir,
    'epoch': status.epochs,
    'commit': status.commit,
    'data_fingerprint': log.fingerprint,
  }


def carry_over(
  run: PreparedRun,
  params: Params,
  arrays: dict[str, np.ndarray],
  old_log: EventLog,
) -> Params:
  """Parameters with all that an earlier run has learned.

  Args:
    run: whose log says which row a node has now.
    params: as they are drawn for it.
    arrays: of the earlier checkpoint, by full name.
    old_log: its log.

  Raises:
    InputError: if a parameter is missing there, or has another shape.
  """
  rows = {
    'user': _matches(run.log.user_ids, old_log.user_ids),
    'item': _matches(run.log.item_ids, old_log.item_ids),
  }
  # A table of all nodes has the users' rows, then the items'.
  first_item = np.array([len(run.log.user_ids), len(old_log.user_ids)])
  rows['node'] = np.concatenate(
    [rows['user'], rows['item'] + first_item[:, None]], axis=1
  )

  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  new = []
  for (path, leaf), axes in zip(leaves, _node_axes(run)):
    name = 'params.' + jax.tree_util.keystr(path, simple=True, separator='.')
    old = arrays.get(name)
    fits = old is not None and all(
      axis or a == b for axis, a, b in zip(axes, leaf.shape, old.shape)
    )
    if old is None or old.ndim != leaf.ndim or not fits:
      raise InputError(
        f'--init_from: {name} is {leaf.shape} here, '
        f'{None if old is None else old.shape} there; allowed: a run of the '
        'same model'
      )
    every = [
      rows[axis] if axis else np.tile(np.arange(size), (2, 1))
      for axis, size in zip(axes, leaf.shape)
    ]
    value = np.array(leaf)
    value[np.ix_(*(pair[0] for pair in every))] = old[
      np.ix_(*(pair[1] for pair in every))
    ]
    new.append(jax.device_put(value, leaf.sharding))
  return jax.tree_util.tree_unflatten(structure, new)


def _matches(ids: np.ndarray, old_ids: np.ndarray) -> np.ndarray:
  """i64[2, nodes]: rows here and there of the ids that both have, and of 0."""
  old_rows = {name: row for row, name in enumerate(old_ids)}
  pairs = [
    (row, old_rows[name]) for row, name in enumerate(ids) if name in old_rows
  ]
  return np.array(pairs, np.int64).T


def _node_axes(run: PreparedRun) -> list[tuple[str, ...]]:
  """For each parameter which nodes the rows of each axis are.

  No system says so: it is seen from how shapes follow the number of nodes.
  """

  def init(
    key: jax.Array, inputs: Inputs, more_users: int, more_items: int
  ) -> Params:
    text, graph = inputs.item_text, inputs.train_graph
    if graph is not None:  # one with a neighbor a node will do
      count = len(graph.degrees) + more_users + more_items
      graph = TrainGraph(
        levels=(jnp.zeros([count, 1], jnp.int32),),
        owners=jnp.zeros([count], jnp.int32),
        degrees=jnp.zeros([count]),
      )
    inputs = inputs.replace(
      num_users=inputs.num_users + more_users,
      num_items=inputs.num_items + more_items,
      item_text=jnp.pad(text, ((0, more_items), (0, 0))),
      train_graph=graph,
    )
    return run.system.init(key, inputs, 1)[0]

  def shapes(more_users: int, more_items: int) -> list[tuple[int, ...]]:
    params = jax.eval_shape(
      functools.partial(init, more_users=more_users, more_items=more_items),
      jax.random.key(0),
      run.inputs,
    )
    return [leaf.shape for leaf in jax.tree.leaves(params)]

  kinds = {(True, False): 'user', (False, True): 'item', (True, True): 'node'}
  return [
    tuple(
      kinds.get((size != by_user, size != by_item), '')
      for size, by_user, by_item in zip(*three)
    )
    for three in zip(shapes(0, 0), shapes(_MORE, 0), shapes(0, _MORE))
  ]
