"""Training steps that touch those rows of an embedding table that they read.

Gradients and optimizer of a table of a million rows would cost a pass over it
every step. Here a step first learns which rows it will read, takes gradients
of those alone, and updates them and their moments in place, a block at a time
(`update`). Rows that a step does not read keep their values and their moments,
as in torch.optim.SparseAdam, where Adam over the whole table would let them
drift on. A table with few more rows than a step reads is left whole: to work
on its rows alone would save nothing.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from dynllm_jax.layers.embed import Embed
from dynllm_jax.layers.embed import HELD
from dynllm_jax.layers.embed import TABLE
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import Params

Held = dict[tuple[str, ...], Array]  # by the table's path in the parameters

_WORTH = 1.5  # rows of a table for each that is read, at which it is held
_BLOCK = 1024  # rows updated at once, so that they stay in a core's cache


def held_rows(objective: Callable[[Params], Any], params: Params) -> Held:
  """Rows that an objective reads of each table that has many more.

  The objective is traced once more for it; of that, only what the ids depend
  on is left in the program.

  Args:
    objective: of the parameters; no `Embed` in it stands inside a loop or a
      branch.
    params: nested dicts.

  Returns:
    Of each such table i32[ids read], distinct and ascending, then NO_ROW.
  """
  found = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, Embed):
      path = (*context.module.path, TABLE)
      found.setdefault(path, []).append(jnp.ravel(args[0]))
    return call(*args, **kwargs)

  tables = {
    path: len(leaf)
    for path, leaf in traverse_util.flatten_dict(params).items()
    if path[-1] == TABLE
  }
  if not tables:
    return {}
  with nn.intercept_methods(record):
    objective(params)
  return {
    path: _distinct(sharded_table.replicate(jnp.concatenate(ids)))
    for path, ids in found.items()
    if _WORTH * sum(map(len, ids)) < tables[path]
  }


def _distinct(ids):
  """Distinct ids, ascending, then NO_ROW; cheaper than jnp.unique."""
  ids = jnp.sort(ids)
  again = jnp.pad(ids[1:] == ids[:-1], (1, 0))
  return jnp.sort(jnp.where(again, sharded_table.NO_ROW, ids))


def take(held: Held, params: Params) -> Params:
  """Parameters with held rows in place of tables; of NO_ROW any row."""
  return _map(
    lambda names, leaf: (
      leaf.at[held[names]].get(mode='clip') if names in held else leaf
    ),
    params,
  )


def hold(held: Held, params: Params) -> Params:
  """A result of `take` as `Embed` expects it."""
  if not held:
    return params
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    flat | {(*path[:-1], HELD): ids for path, ids in held.items()}
  )


def update(
  optimizer: optax.GradientTransformation,
  held: Held,
  grads: Params,
  params: Params,
  opt_state: Any,
  real: Array,
) -> tuple[Params, Any]:
  """The parameters and the optimizer's state after a step.

  Args:
    optimizer: works on each number by itself, as Adam does.
    held: of the step.
    grads: with rows in place of tables.
    params: whole.
    opt_state: whole; what belongs to a parameter has the path of it.
    real: bool[], whether the step counts; otherwise nothing changes.

  Returns:
    Both, whole.
  """
  names_of_all = set(traverse_util.flatten_dict(params))

  def only(wanted, tree):
    """Of what belongs to a parameter, what belongs to a wanted one."""
    return _map(
      lambda names, leaf: (
        leaf
        if names in wanted or names not in names_of_all
        else optax.MaskedNode()
      ),
      tree,
    )

  others = names_of_all - set(held)
  old = only(others, (params, opt_state))
  changes, new_state = optimizer.update(only(others, grads), old[1], old[0])
  new = optax.apply_updates(old[0], changes), new_state
  new = jax.tree.map(functools.partial(jnp.where, real), new, old)
  for path, ids in held.items():
    table = _update_table(
      optimizer,
      path,
      jnp.where(real, ids, sharded_table.NO_ROW),
      only({path}, grads),
      only({path}, (params, opt_state)),
    )
    new = jax.tree.map(
      lambda leaf, other: other if _is_masked(leaf) else leaf,
      new,
      table,
      is_leaf=_is_masked,
    )
  return new


def _update_table(optimizer, path, ids, grads, tree):
  """A table, and the optimizer's state of it, after a step.

  Args:
    optimizer: of `update`.
    path: of the table.
    ids: i32[n], rows, distinct, then NO_ROW.
    grads: [n, dim] at the path.
    tree: parameters and state, nothing but what belongs to the table and to
      no parameter.
  """
  size = min(_BLOCK, len(ids))

  def at_table(function, *trees):
    return _map(
      lambda names, leaf, *others: (
        function(leaf, *others) if names == path else leaf
      ),
      *trees,
    )

  def step(index, tree):
    # The last block begins early enough to be full; it has seen some rows.
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

  count = jnp.sum(ids != sharded_table.NO_ROW)
  return jax.lax.fori_loop(0, -(-count // size), step, tree)


def _is_masked(leaf):
  return isinstance(leaf, optax.MaskedNode)


def _map(function, *trees):
  """Maps over leaves and the names that lead to them, `(names, *leaves) ->`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(
      tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)),
      *leaves,
    ),
    *trees,
  )
