"""Training steps that touch only the rows of an embedding table that they read.

Gradients and optimizer of a table of a million rows would cost a pass over it
every step. Here a step first learns which rows it will read, takes gradients
of those alone, and updates them and their moments in place, a block at a time
(`update`). Rows that a step does not read keep their values and their moments,
as in torch.optim.SparseAdam, where Adam over the whole table would let them
drift on. A table with few more rows than a step reads is left whole: to work
on its rows alone would save nothing.

Two ways that need no second trace of the objective do not serve. Flax's
`perturb` needs a variable of the shape of every lookup before anything is
traced, one for each call of a module, and every function of a system would
have to pass collections in and out. A custom gradient of the lookup must return
the gradient of a whole table; it can only note rows and their gradients on the
side while JAX traces the backward pass, which JAX does not promise to do once
and in the same trace. It gives the same bits and is no faster: TGN with
tables of 10,000 and 1,000,000 rows traces in 7.1 and 7.9 s instead of 7.2 and
8.0, compiles in 16.0 and 15.4 instead of 15.6 and 15.8, and a step takes 1.3
and 1.3 ms instead of 1.4 and 1.2 (processor time, medians of three on a busy
machine, jax 0.10.2). The second trace is cheap, since it has no gradient.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from dynllm_jax.kernels import platforms
from dynllm_jax.layers.embed import Embed
from dynllm_jax.layers.embed import ROW_IDS
from dynllm_jax.layers.embed import TABLE
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Params

Path = tuple[str, ...]  # of a table in the parameters
# For each table that is read by rows: their ids, i32[ids read], distinct and
# ascending, then NO_ROW.
Rows = dict[Path, Array]

_WORTH = 1.5  # a table of fewer rows for each id that is read is left whole
BLOCK = 1024  # rows updated at once, so that they stay in a core's cache


def find_rows(objective: Callable[[Params], Any], params: Params) -> Rows:
  """Finds the rows that an objective reads of each large table.

  This traces the objective once more; of that trace, the compiler keeps only
  what the ids depend on.

  Args:
    objective: of the parameters; no `Embed` in it stands inside a loop or a
      branch.
    params: nested dicts.

  Returns:
    The rows of each table but those that are better left whole.
  """
  tables = {
    path: len(leaf)
    for path, leaf in traverse_util.flatten_dict(params).items()
    if path[-1] == TABLE
  }
  if not tables:
    return {}

  read: dict[Path, list[Array]] = {}

  def record(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    if isinstance(context.module, Embed):
      path = (*context.module.path, TABLE)
      read.setdefault(path, []).append(jnp.ravel(args[0]))
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    objective(params)
  return {
    path: _sort_distinct(sharded_table.replicate(jnp.concatenate(ids)))
    for path, ids in read.items()
    if _WORTH * sum(map(len, ids)) < tables[path]
  }


def _sort_distinct(ids: Array) -> Array:
  """Distinct ids, ascending, then NO_ROW; cheaper than jnp.unique."""
  ids = jnp.sort(ids)
  again = jnp.pad(ids[1:] == ids[:-1], (1, 0))
  return jnp.sort(jnp.where(again, sharded_table.NO_ROW, ids))


def read_rows(rows: Rows, params: Params) -> Params:
  """The parameters, with those rows in place of whole tables.

  Args:
    rows: of `find_rows`.
    params: with whole tables.

  Returns:
    The parameters, f32[ids read, dim] for each such table; NO_ROW gives a row
    that does not matter.
  """
  return _map(
    lambda path, leaf: (
      leaf.at[rows[path]].get(mode='clip') if path in rows else leaf
    ),
    params,
  )


def attach_ids(rows: Rows, params: Params) -> Params:
  """A result of `read_rows`, with the ids by which `Embed` finds its rows."""
  if not rows:
    return params
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    flat | {(*path[:-1], ROW_IDS): ids for path, ids in rows.items()}
  )


def update(
  optimizer: optax.GradientTransformation,
  rows: Rows,
  grads: Params,
  params: Params,
  opt_state: Any,
  real: Array,
) -> tuple[Params, Any]:
  """The parameters and the optimizer's state after a step.

  Args:
    optimizer: changes each parameter by its own gradient and moments alone, as
      Adam does.
    rows: of `find_rows`.
    grads: of what `read_rows` returns.
    params: with whole tables.
    opt_state: of the optimizer; the moments of a parameter have its path.
    real: bool[], whether the step counts; otherwise nothing changes.

  Returns:
    Both, with whole tables.
  """
  every_path = set(traverse_util.flatten_dict(params))

  def only(wanted: set[Path], tree: Any) -> Any:
    """A tree in which only the wanted parameters and moments are not masked."""
    return _map(
      lambda path, leaf: (
        leaf if path in wanted or path not in every_path else optax.MaskedNode()
      ),
      tree,
    )

  # Parameters that are left whole are updated as they would be anywhere.
  others = every_path - set(rows)
  old = only(others, (params, opt_state))
  changes, new_state = optimizer.update(only(others, grads), old[1], old[0])
  new = optax.apply_updates(old[0], changes), new_state
  new = jax.tree.map(functools.partial(jnp.where, real), new, old)

  # Each table is updated with its moments, and both replace their masks.
  for path, ids in rows.items():
    table = _update_table(
      optimizer,
      path,
      ids=jnp.where(real, ids, sharded_table.NO_ROW),
      grads=only({path}, grads),
      tree=only({path}, (params, opt_state)),
    )
    new = jax.tree.map(
      lambda leaf, other: other if _is_masked(leaf) else leaf,
      new,
      table,
      is_leaf=_is_masked,
    )
  return new


def _update_table(
  optimizer: optax.GradientTransformation,
  path: Path,
  ids: Array,
  grads: Params,
  tree: tuple[Params, Any],
) -> tuple[Params, Any]:
  """A table and its moments after a step, updated in place block by block.

  Args:
    optimizer: of `update`.
    path: of the table.
    ids: i32[n], rows, distinct, then NO_ROW.
    grads: [n, dim] at the path.
    tree: parameters and the optimizer's state; all other parameters and their
      moments are masked.

  Returns:
    The tree.
  """

  def at_table(function: Callable[..., Array], *trees: Any) -> Any:
    return _map(
      lambda here, leaf, *others: (
        function(leaf, *others) if here == path else leaf
      ),
      *trees,
    )

  def step(
    size: int, index: Array | int, tree: tuple[Params, Any]
  ) -> tuple[Params, Any]:
    # The last block begins early enough to be full. Some of its rows were
    # updated before and must not be again.
    start = jnp.minimum(index * size, len(ids) - size)
    block = jax.lax.dynamic_slice(ids, [start], [size])
    seen = start + jnp.arange(size) < index * size

    params, state = at_table(lambda x: x.at[block].get(mode='clip'), tree)
    changes, state = optimizer.update(
      at_table(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), grads),
      state,
      params,
    )

    return at_table(
      lambda x, new: x.at[jnp.where(seen, sharded_table.NO_ROW, block)].set(
        new, mode='drop'
      ),
      tree,
      (optax.apply_updates(params, changes), state),
    )

  def by_blocks(tree: tuple[Params, Any]) -> tuple[Params, Any]:
    size = min(BLOCK, len(ids))
    count = jnp.sum(ids != sharded_table.NO_ROW)
    return jax.lax.fori_loop(
      0, -(-count // size), functools.partial(step, size), tree
    )

  # A GPU has no use for small blocks, and waits for the host at every round.
  def at_once(tree: tuple[Params, Any]) -> tuple[Params, Any]:
    return step(len(ids), 0, tree)

  updated: tuple[Params, Any] = platforms.on_gpu(at_once, by_blocks, tree)
  return updated


def _is_masked(leaf: Any) -> bool:
  return isinstance(leaf, optax.MaskedNode)


def _map(function: Callable[..., Any], *trees: Any) -> Any:
  """Maps `(path, *leaves) ->` over trees; a path has keys of dicts alone."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(
      tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)),
      *leaves,
    ),
    *trees,
  )
