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


def score(users: UserEmbeddings, items: ItemEmbeddings) -> Array:
  """Scores every candidate for every user.

  Args:
    users: [batch].
    items: [candidates]; ids in any order, also repeated.

  Returns:
    f32[batch, candidates].
  """
  return functools.reduce(operator.add, score_terms(users, items).values())


def score_terms(
  users: UserEmbeddings, items: ItemEmbeddings, in_order: bool = False
) -> dict[str, Array]:
  """The parts of a score, whose sum in this order is the score.

  Args:
    users: [batch].
    items: [candidates]; ids in any order, also repeated.
    in_order: whether they are the items 1, 2, ... in this order, so that no
      column has to be looked for.

  Returns:
    f32[batch, candidates] of `network`, the dot product, and of those of
    `text`, `copy`, `walk`, `item_scores` and `counts` that the system has.
  """
  terms = {'network': _scaled(users, users.vector @ items.vector.T)}
  if users.text is not None:
    assert items.text is not None
    terms['text'] = users.text @ items.text.T

  if users.copy is not None or users.walk is not None:
    # Terms are summed by sorted ids, in the first column of each id, and every
    # candidate reads its id's column.
    ids: Array | None = None
    of_candidates: Callable[[Array], Array] = lambda sums: sums
    if not in_order:
      ids, column = columns.of_candidates(items.ids)
      of_candidates = lambda sums: row_sums.read_columns(sums, column)
    count = len(items.ids)
    if users.copy is not None:
      terms['copy'] = of_candidates(_spread(users.copy, ids, count))
    if users.walk is not None:
      assert users.walk_scale is not None
      walks = _spread(users.walk, ids, count)
      terms['walk'] = users.walk_scale * of_candidates(jnp.log1p(walks))

  if users.item_scores is not None:
    terms['item_scores'] = users.item_scores[:, items.ids]
  if users.counts is not None:
    assert items.column is not None
    terms['counts'] = row_sums.read_columns(users.counts, items.column)
  return terms


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


def _spread(terms: Terms, ids: Array | None, count: int) -> Array:
  """Sums of the weights at the first place of each id in sorted ids.

  Args:
    terms: [batch, terms].
    ids: i32[count], ascending; None for 1, 2, ...
    count: of candidates.

  Returns:
    f32[batch, count]; zero at an id's later places.
  """
  column = (
    jnp.where(terms.items > 0, terms.items - 1, count)
    if ids is None
    else columns.find(ids, terms.items)
  )
  return row_sums.sum_in_rows(terms.weights, column, count)
