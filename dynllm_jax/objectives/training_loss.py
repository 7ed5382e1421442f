"""The training objective: sampled negatives, loss and regularizer (SPEC 3.9)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynllm_jax.objectives import dedup
from dynllm_jax.objectives import losses
from dynllm_jax.objectives import scoring
from dynllm_jax.objectives.negatives import sample_negatives
from dynllm_jax.parallel import sharded_table
from dynllm_jax.types import Array
from dynllm_jax.types import EventBatch
from dynllm_jax.types import Inputs
from dynllm_jax.types import ItemEmbeddings
from dynllm_jax.types import Loss
from dynllm_jax.types import UserEmbeddings

Embed = Callable[[Array, Array, Array], tuple[UserEmbeddings, ItemEmbeddings]]


def sampled_loss(
  config: Any,
  embed: Embed,
  inputs: Inputs,
  batch: EventBatch,
  events: Array,
  key: Array,
  visit: Array | None = None,
) -> Loss:
  """The loss of a batch's events against sampled negatives.

  Args:
    config: `config.train`.
    embed: `(items [candidates], item_time [], key) ->` the batch's visits
      (dedup.py) and the items; `System.embed` with the rest bound.
    inputs: for the negatives.
    batch: the events, [batch].
    events: i32[batch], their positions in the log.
    key: of negatives and dropout.
    visit: i32[batch], the visit of each event; None: its own.

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
    shape if shared else (size, *shape),
    config.negatives,
  )
  # No event of the batch is earlier, whatever their order.
  users, items = embed(
    sharded_table.replicate(
      jnp.concatenate([batch.items, negatives.reshape(-1)])
    ),
    jnp.min(batch.times),
    dropout_key,
  )
  if visit is not None:
    users = sharded_table.shard_then_replicate(users)
  each = dedup.expand_to_events(users, visit)
  positives = jax.tree.map(lambda x: x[:size], items)
  rivals = jax.tree.map(lambda x: x[size:], items)
  return Loss(
    total=_ranking_loss(
      config, users, visit, each, positives, rivals, allowed, batch.mask
    ),
    decay=config.regularization
    * _squares(batch, each.vector, positives.vector, rivals.vector, shared),
    user_vectors=each.vector,
    item_vectors=positives.vector,
  )


def _ranking_loss(config, users, visit, each, positives, rivals, allowed, mask):
  """The loss of SPEC 3.9, summed over real events, of `each` a user."""
  size = len(mask)
  own = jax.tree.map(lambda x: x[:, None], positives)
  positive = scoring.score_rows(each, own)[:, 0]
  if config.loss == 'softmax':
    scores = scoring.score(users, rivals)
    return losses.softmax(
      positive, scores if visit is None else scores[visit], allowed, mask
    )
  rows = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), rivals)
  negative = scoring.score_rows(each, rows)
  if config.loss == 'margin':
    return losses.margin(positive, negative, allowed, mask, config.margin)
  pairwise = {'bpr': losses.bpr, 'bce': losses.bce}[config.loss]
  return pairwise(positive, negative, allowed, mask)


def _squares(batch: EventBatch, users, positives, negatives, shared):
  """`||Theta||^2` of the batch's embeddings, summed over real events."""
  per_event = jnp.sum(users**2, -1) + jnp.sum(positives**2, -1)
  squares = jnp.sum(negatives**2, -1)
  if not shared:
    per_event += squares.reshape(len(per_event), -1).sum(-1)
  total = jnp.sum(jnp.where(batch.mask, per_event, 0.0))
  return total + squares.sum() if shared else total
