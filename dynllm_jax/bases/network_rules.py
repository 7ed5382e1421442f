"""Rules for the fields that networks share (checks.py)."""

from dynllm_jax.checks import Rule


def even_width(field: str) -> Rule:
  """A width that is split in two: cosines and sines, static and dynamic."""
  return Rule(
    field,
    'an even number above 0',
    lambda value: value > 0 and value % 2 == 0,
  )


def num_heads(dim: int) -> Rule:
  """Heads that share the width `dim` of the system's vectors equally."""
  return Rule(
    'num_heads',
    f'a divisor of config.model.dim = {dim}',
    lambda value: value >= 1 and dim % value == 0,
  )


def dropout() -> Rule:
  """The share of numbers that training sets to zero."""
  return Rule('dropout', '0 or more, below 1', lambda value: 0 <= value < 1)


def walk_fanout() -> Rule:
  """How many neighbors each of a walk's three steps visits (SPEC 3.11)."""
  return Rule(
    'walk_fanout',
    'three numbers, 1 or more each',
    lambda value: len(value) == 3 and min(value) >= 1,
  )
