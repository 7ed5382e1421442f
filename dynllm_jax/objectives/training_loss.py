"""The loss of a batch: negatives, scores, loss, regularizer (SPEC 3.9)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from dynllm_jax.graph import temporal
from dynllm_jax.kernels import row_sums
from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import losses
from dynllm_jax.objectives import scoring
from dynllm_jax.objectives.negatives import sample_negatives
from dynllm_jax.objectives.negatives import weigh_catalogue
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Loss
from dynllm_jax.types import UserEmbeddings


class _Embedded(NamedTuple):
  """What a batch's events and their negatives are embedded to."""

  visits: UserEmbeddings  # [visits]
  visit: Array | None  # i32[batch], each event's visit; None: one an event
  users: UserEmbeddings  # [batch]
  positives: ItemEmbeddings  # [batch]
  negatives: ItemEmbeddings  # [negatives], or [batch x negatives], flat


class _Against(NamedTuple):
  """What a batch's positives stand against.

  Attributes:
    items: [candidates], or [batch x negatives], flat.
    allowed: bool[batch, candidates or negatives].
    weights: f32[candidates], logarithms of how many items each stands for; None
      for one each.
  """

  items: ItemEmbeddings
  allowed: Array
  weights: Array | None


def sampled_loss(
  config: ml_collections.FrozenConfigDict,
  embed: dedup.Embed,
  inputs: Inputs,
  batch: EventBatch,
  events: Array,
  key: Array,
  visit: Array | None = None,
  num_distinct: int = 0,
) -> Loss:
  """The loss of a batch's events against sampled negatives.

  Args:
    config: `config.train`.
    embed: `(items [candidates], item_time [], key) ->` embeddings of the
      batch's visits (dedup.py) and of the items; `System.embed` with the rest
      bound.
    inputs: for the negatives.
    batch: the events, [batch].
    events: i32[batch], their positions in the log.
    key: of negatives and dropout.
    visit: i32[batch], the visit of each event; None where every event is a
      visit of its own.
    num_distinct: items of the batch at most (`items` of `dedup.DedupLimits`),
      each of which is embedded once; 0: one an event is.

  Returns:
    The loss, summed over real events.
  """
  negative_key, dropout_key = jax.random.split(key)
  size = len(batch.mask)
  shared = config.loss == 'softmax'
  shape = (config.num_negatives,)
  negatives, allowed = sample_negatives(
    negative_key,
    inputs,
    events,
    shape=shape if shared else (size, *shape),
    how=config.negatives,
  )

  own, place = batch.items, None
  if num_distinct:
    own, place = dedup.unique_items(batch.items, num_distinct)
  items = jnp.concatenate([own, negatives.reshape(-1)])

  # Items are embedded at `t_B`, the earliest time whatever the events' order.
  visits, found = embed(
    sharded_table.replicate(items), jnp.min(batch.times), dropout_key
  )
  if visit is not None:
    visits = sharded_table.shard_then_replicate(visits)
  positives = jax.tree.map(lambda x: x[: len(own)], found)
  if place is not None:
    found = sharded_table.shard_then_replicate(found)
    positives = jax.tree.map(
      lambda x: row_sums.read_rows(x[: len(own)], place), found
    )

  embedded = _Embedded(
    visits=visits,
    visit=visit,
    users=dedup.expand_to_events(visits, visit),
    positives=positives,
    negatives=jax.tree.map(lambda x: x[len(own) :], found),
  )

  if config.negatives == 'batch':
    stands, weights = weigh_catalogue(items, len(own), inputs.num_items)
    allowed = stands & ~temporal.takes_of_shared(
      inputs.same_time, events, items, inputs.num_items
    )
    against = _Against(found, allowed, weights)
  else:
    against = _Against(embedded.negatives, allowed, None)
  total = _ranking_loss(config, embedded, against, batch.mask, inputs.num_items)
  return Loss(
    total=total,
    decay=config.regularization * _squares(embedded, batch.mask, shared),
    user_vectors=embedded.users.vector,
    item_vectors=embedded.positives.vector,
  )


def _ranking_loss(
  config: ml_collections.FrozenConfigDict,
  embedded: _Embedded,
  against: _Against,
  mask: Array,
  num_items: int,
) -> Array:
  """The loss that the config names, summed over real events, f32[]."""
  size, users = len(mask), embedded.users
  own = jax.tree.map(lambda x: x[:, None], embedded.positives)
  positive = scoring.score_rows(users, own)[:, 0]

  # Negatives that the batch shares: one product scores them for every visit.
  if config.loss == 'softmax':
    scores = scoring.score(embedded.visits, against.items, num_items)
    if embedded.visit is not None:
      scores = row_sums.read_rows(scores, embedded.visit)
    if against.weights is not None:
      scores += against.weights
    return losses.softmax(
      positive, scores, against.allowed, mask, config.softmax_power
    )

  rows = jax.tree.map(
    lambda x: x.reshape(size, -1, *x.shape[1:]), against.items
  )
  negative = scoring.score_rows(users, rows)
  if config.loss == 'margin':
    return losses.margin(
      positive, negative, against.allowed, mask, config.margin
    )
  pairwise = {'bpr': losses.bpr, 'bce': losses.bce}[config.loss]
  return pairwise(positive, negative, against.allowed, mask)


def _squares(embedded: _Embedded, mask: Array, shared: bool) -> Array:
  """`||Theta||^2` of the batch's embeddings, summed over real events.

  Args:
    embedded: users, positives and negatives of the batch.
    mask: bool[batch].
    shared: whether the batch shares its negatives; they then count once.

  Returns:
    f32[].
  """
  users, positives = embedded.users.vector, embedded.positives.vector
  per_event = jnp.sum(users**2, -1) + jnp.sum(positives**2, -1)
  squares = jnp.sum(embedded.negatives.vector**2, -1)
  if not shared:
    per_event += squares.reshape(len(per_event), -1).sum(-1)
  total = jnp.sum(jnp.where(mask, per_event, 0.0))
  return total + squares.sum() if shared else total
