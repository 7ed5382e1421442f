"""Scores of items for users: dot product plus terms (SPEC 3.9 to 3.12)."""

from collections.abc import Callable
import functools
import operator

import jax.numpy as jnp

from dynllm_jax.graph import columns
from dynllm_jax.kernels import row_sums
from dynllm_jax.types import Array
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Terms
from dynllm_jax.types import UserEmbeddings


def score(
  users: UserEmbeddings, items: ItemEmbeddings, num_items: int
) -> Array:
  """Scores every candidate for every user.

  Args:
    users: [batch].
    items: [candidates]; ids in any order, also repeated.
    num_items: of the catalogue.

  Returns:
    f32[batch, candidates].
  """
  return functools.reduce(operator.add, summands(users, items, num_items))


def summands(
  users: UserEmbeddings, items: ItemEmbeddings, num_items: int | None
) -> list[Array]:
  """What a score is the sum of, in this order.

  Args:
    users, items, num_items: as in `score_terms`.

  Returns:
    f32[batch, candidates] each, the terms, but for `copy` and `walk`, which are
    one: candidates read their sum at once.
  """
  sums, read = _sums(users, items, num_items)
  both = [read(functools.reduce(operator.add, sums.values()))] if sums else []
  before, after = _dense_terms(users, items)
  return [*before.values(), *both, *after.values()]


def score_terms(
  users: UserEmbeddings, items: ItemEmbeddings, num_items: int | None
) -> dict[str, Array]:
  """The parts of a score, whose sum is the score.

  Args:
    users: [batch].
    items: [candidates]; ids in any order, also repeated.
    num_items: of the catalogue; None where the candidates are the items 1, 2,
      ... in this order, so that no column has to be looked for.

  Returns:
    f32[batch, candidates] of `network`, the dot product, and of those of
    `text`, `copy`, `walk`, `item_scores` and `counts` that the system has.
  """
  sums, read = _sums(users, items, num_items)
  before, after = _dense_terms(users, items)
  return before | {name: read(x) for name, x in sums.items()} | after


def _dense_terms(
  users: UserEmbeddings, items: ItemEmbeddings
) -> tuple[dict[str, Array], dict[str, Array]]:
  """The terms that stand before those of `_sums`, and those after them."""
  before = {'network': _scaled(users, users.vector @ items.vector.T)}
  if users.text is not None:
    assert items.text is not None
    before['text'] = users.text @ items.text.T

  after = {}
  if users.item_scores is not None:
    after['item_scores'] = users.item_scores[:, items.ids]
  if users.counts is not None:
    assert items.column is not None
    after['counts'] = row_sums.read_columns(users.counts, items.column)
  return before, after


def _sums(
  users: UserEmbeddings, items: ItemEmbeddings, num_items: int | None
) -> tuple[dict[str, Array], Callable[[Array], Array]]:
  """The terms that are summed by column, and what reads them.

  Returns:
    f32[batch, columns] of those of `copy` and `walk` that the system has; and
    the function that gives every candidate its column.
  """
  sums: dict[str, Array] = {}
  if users.copy is None and users.walk is None:
    return sums, lambda sums: sums

  table: columns.Table | None = None
  read: Callable[[Array], Array] = lambda sums: sums
  if num_items is not None:
    table, column = columns.of_candidates(items.ids, num_items)
    read = lambda sums: row_sums.read_columns(sums, column)

  count = len(items.ids)
  if users.copy is not None:
    sums['copy'] = _spread(users.copy, table, count)
  if users.walk is not None:
    assert users.walk_scale is not None
    walks = _spread(users.walk, table, count)
    sums['walk'] = users.walk_scale * jnp.log1p(walks)
  return sums, read


def score_rows(users: UserEmbeddings, items: ItemEmbeddings) -> Array:
  """Scores each user's own few candidates.

  Args:
    users: [batch].
    items: ids [batch, candidates], vectors [batch, candidates, dim].

  Returns:
    f32[batch, candidates].
  """
  scores = _scaled(users, jnp.einsum('bd,bcd->bc', users.vector, items.vector))
  if users.text is not None:
    assert items.text is not None
    scores += jnp.einsum('bd,bcd->bc', users.text, items.text)
  if users.copy is not None:
    scores += _matched(users.copy, items.ids)
  if users.walk is not None:
    assert users.walk_scale is not None
    scores += users.walk_scale * jnp.log1p(_matched(users.walk, items.ids))
  if users.item_scores is not None:
    scores += jnp.take_along_axis(users.item_scores, items.ids, axis=1)
  if users.counts is not None:
    assert items.column is not None
    scores += row_sums.read_in_rows(users.counts, items.column)
  return scores


def _scaled(users: UserEmbeddings, products: Array) -> Array:
  return products if users.scale is None else users.scale * products


def _matched(terms: Terms, ids: Array) -> Array:
  """Sums of the weights on each row's own candidates, f32[batch, c]."""
  hit = terms.items[:, :, None] == ids[:, None, :]
  return jnp.sum(jnp.where(hit, terms.weights[:, :, None], 0.0), axis=1)


def _spread(terms: Terms, table: columns.Table | None, count: int) -> Array:
  """Sums of the weights in the columns of the candidates.

  Args:
    terms: [batch, terms].
    table: their columns; None for the items 1, 2, ...
    count: of candidates.

  Returns:
    f32[batch, count]; zero in the places of an id but for its column.
  """
  column = (
    jnp.where(terms.items > 0, terms.items - 1, count)
    if table is None
    else table.find(terms.items)
  )
  return row_sums.sum_in_rows(terms.weights, column, count)
