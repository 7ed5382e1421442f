"""How gradients become changes of the parameters: clipping, Adam, its rate."""

import jax
import ml_collections
import optax

from dynllm_jax.types import Params


def adam(
  config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """Adam, at a rate that rises over the warm-up and then falls as a cosine.

  Args:
    config: `config.train`.
    num_steps: of the whole training.
  """
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
      'time': optax.clip_by_global_norm(config.max_time_gradient_norm),
      'other': optax.clip_by_global_norm(config.max_gradient_norm),
    },
    _clip_labels,
  )


def _clip_labels(params: Params) -> Params:
  """Each parameter's group, 'time' or 'other', whose norm is limited as one."""
  name = 'log_time_frequencies'
  return jax.tree_util.tree_map_with_path(
    lambda path, _: 'time' if path[-1].key == name else 'other', params
  )
