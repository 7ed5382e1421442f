"""How gradients become changes of the parameters: clipping, Adam, its rate."""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dynllm_jax.kernels import platforms
from dynllm_jax.types import Params


def adam(
  config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """Adam, at a rate that rises over the warm-up and then falls as a cosine.

  Args:
    config: `config.train`.
    num_steps: of the whole training.
  """
  if config.final_learning_rate == 1.0:
    # The cosine from 1 to 1, without the length of the training: a run that is
    # resumed for more epochs finds its program compiled.
    rate = optax.constant_schedule(config.learning_rate)
  else:
    rate = optax.cosine_decay_schedule(
      config.learning_rate,
      max(1, num_steps - config.warmup_steps),
      config.final_learning_rate,
    )
  if config.warmup_steps:
    warmup = optax.linear_schedule(
      0.0, config.learning_rate, config.warmup_steps
    )
    rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
  return optax.adam(rate)


def clipping(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """Limits the norm of all gradients together.

  The frequencies of the time encoding are limited on their own: a phase is a
  frequency times days since long ago, so that their gradients are far larger.

  Args:
    config: `config.train`.
  """
  return optax.multi_transform(
    {
      'time': _clip_by_norm(config.max_time_gradient_norm),
      'other': _clip_by_norm(config.max_gradient_norm),
    },
    _clip_labels,
  )


def _clip_by_norm(max_norm: float) -> optax.GradientTransformation:
  """`optax.clip_by_global_norm`, whose sums are one on a GPU."""

  def update(
    updates: Params, state: optax.EmptyState, params: Params | None = None
  ) -> tuple[Params, optax.EmptyState]:
    del params
    leaves = jax.tree.leaves(updates)
    if not leaves:
      return updates, state
    norm = platforms.on_gpu(_norm_in_one, _norm_by_leaf, *leaves)
    return jax.tree.map(
      lambda x: jnp.where(norm < max_norm, x, x / norm * max_norm), updates
    ), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _norm_in_one(*leaves: jax.Array) -> jax.Array:
  """The norm of all values; one pass, where each sum is a launch or two."""
  return jnp.linalg.norm(jnp.concatenate([jnp.ravel(x) for x in leaves]))


def _norm_by_leaf(*leaves: jax.Array) -> jax.Array:
  """The same, without a copy of the values."""
  return optax.tree.norm(list(leaves))


def _clip_labels(params: Params) -> Params:
  """Each parameter's group, 'time' or 'other', whose norm is limited as one."""
  name = 'log_time_frequencies'
  return jax.tree_util.tree_map_with_path(
    lambda path, _: 'time' if path[-1].key == name else 'other', params
  )
