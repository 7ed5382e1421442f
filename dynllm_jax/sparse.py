"""Training steps that touch those rows of an embedding table that they read.

Gradients and optimizer of a table of a million rows would cost a pass over it
every step. Here a step first learns which rows it will read, then works on
those alone, with their moments, and puts them back. Rows that a step does not
read keep their values and their moments, as in torch.optim.SparseAdam, where
Adam over the whole table would let them drift on. A table with no more rows
than a step reads is left whole: to gather its rows would save nothing.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from dynllm_jax import rows
from dynllm_jax.layers.embed import Embed
from dynllm_jax.layers.embed import HELD
from dynllm_jax.layers.embed import TABLE
from dynllm_jax.types import Array
from dynllm_jax.types import Params

Held = dict[tuple[str, ...], Array]  # by the table's path in the parameters


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

  tables = {path: len(leaf) for path, leaf in
            traverse_util.flatten_dict(params).items() if path[-1] == TABLE}
  if not tables:
    return {}
  with nn.intercept_methods(record):
    objective(params)
  return {
      path: _distinct(rows.replicated(jnp.concatenate(ids)))
      for path, ids in found.items() if sum(map(len, ids)) < tables[path]}


def _distinct(ids):
  """Distinct ids, ascending, then NO_ROW; cheaper than jnp.unique."""
  ids = jnp.sort(ids)
  again = jnp.pad(ids[1:] == ids[:-1], (1, 0))
  return jnp.sort(jnp.where(again, rows.NO_ROW, ids))


def take(held: Held, tree: Any) -> Any:
  """Parameters, or what mirrors them, with held rows in place of tables."""
  return _map(
      held, lambda ids, table: table.at[ids].get(mode='fill', fill_value=0),
      lambda leaf: leaf, tree)


def put(held: Held, tree: Any, values: Any) -> Any:
  """`values`, a result of `take`, with its rows back in the tables of `tree`."""
  return _map(
      held, lambda ids, table, rows: table.at[ids].set(rows, mode='drop'),
      lambda _, value: value, tree, values)


def hold(held: Held, params: Params) -> Params:
  """A result of `take` as `Embed` expects it."""
  if not held:
    return params
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
      flat | {(*path[:-1], HELD): ids for path, ids in held.items()})


def _map(held, of_table, of_other, *trees):
  """Maps over leaves; a table is known by the end of its path."""
  def of(path, *leaves):
    names = tuple(key.key for key in path
                  if isinstance(key, jax.tree_util.DictKey))
    ids = [ids for name, ids in held.items() if names[-len(name):] == name]
    return of_table(ids[0], *leaves) if ids else of_other(*leaves)

  return jax.tree_util.tree_map_with_path(of, *trees)
