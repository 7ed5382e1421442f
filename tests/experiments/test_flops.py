"""Operations and rows of a step, counted by formula."""

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.layers.attention import SingleQueryAttention
from experiments import flops
from experiments import random_logs
from tests.testing import tiny_slices


def plain_counts(log, plan, near, depth, num_items):
  """Rows of the batches of a plan, event by event; no negatives."""
  events = list(zip(log.users, log.items, log.times))

  def latest(side, node, time):
    other = 1 - side
    seen = [e[other] for e in events if e[side] == node and e[2] < time]
    return seen[::-1][:near]

  rows = []
  for planned in plan.batches:
    batch = events[planned.start : planned.start + planned.size]
    users = {(u, t) for u, _, t in batch}
    items = {i for _, i, _ in batch}
    of_users = [(i, t) for u, t in users for i in latest(0, u, t)]
    inner = set(of_users) if depth == 2 else set()
    rows.append(
      [
        len(batch),
        len(users),
        len(of_users),
        len(items),
        sum(len(latest(1, i, batch[0][2])) for i in items),
        len(inner),
        sum(len(latest(1, i, t)) for i, t in inner),
        len(users),
        len({(i, t) for _, i, t in batch}),
        len(items | {i for i, _ in of_users}),
      ]
    )
  return np.mean(rows, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize('system', ['tgn', 'dynllm'])
def test_rows_of_a_batch_are_those_of_a_plain_count(system):
  log = random_logs.uniform(90, 6, 9)
  config, slices = tiny_slices.build(system, log=log)
  found = flops.count_rows(slices.inputs, slices.plan, config.model, 0)
  expected = plain_counts(
    log, slices.plan, 3, config.model.num_layers, log.num_items
  )
  np.testing.assert_allclose(list(vars(found).values())[:-1], expected)
  assert (found.texts > 0) == (system == 'dynllm')


def test_operations_of_a_step_of_tgn():
  config = config_lib.default('tgn')
  config.update_from_flattened_dict(tiny_slices.FIELDS)
  counts = flops.Counts(
    events=7,
    users=5,
    user_edges=9,
    items=11,
    item_edges=13,
    inner=0,
    inner_edges=0,
    user_updates=5,
    item_updates=6,
    read_items=0,
    texts=0,
  )
  d, key, rows = 8, 8 + 4, 5 + 11
  attention = rows * (d * d + d * key + key * d) + (9 + 13) * 2 * 2 * key
  merge = rows * (2 * d * d + d * d)
  updates = (5 + 6) * (2 * d + 4 + d) * 3 * d
  scores = 7 * (1 + 2) * d
  assert flops.step(config.model, counts, 384, 2) == (
    3 * 2 * (attention + merge + updates + scores)
  )


def test_texts_cost_no_gradient_of_their_own():
  config = config_lib.default('dynllm')
  none = dict.fromkeys(flops.Counts.__dataclass_fields__, 0.0)
  counts = flops.Counts(**{**none, 'texts': 10.0, 'read_items': 20.0})
  assert flops.step(config.model, counts, 384, 1) == (
    2 * 2 * 384 * (10 * 128 + 20 * 64)
  )
  with pytest.raises(ValueError, match='no count'):
    flops.step(config_lib.default('sasrec').model, counts, 384, 1)


def test_no_program_does_with_fewer_operations_than_the_paper():
  """What XLA counts for an attention's products is at least the formula."""

  rows, near, d, key = 64, 3, 16, 24
  layer = SingleQueryAttention(d, 2)
  arguments = (
    [np.ones((rows, d))],
    [np.ones((rows, near, key))],
    np.ones((rows, near), bool),
    True,
  )
  params = layer.init(jax.random.key(0), *arguments)
  cost = (
    jax.jit(lambda p: layer.apply(p, *arguments).rows)
    .lower(params)
    .cost_analysis()['flops']
  )
  paper = flops.attention(
    rows, rows * near, query=d, key=key, dim=d, num_heads=2
  )
  # A sum of n terms has one addition less; beyond the formula is a softmax.
  assert 0.9 * paper <= cost <= 2 * paper


def test_repeated_nodes_are_embedded_again():
  counts = flops.Counts(
    events=8,
    users=4,
    user_edges=6,
    items=12,
    item_edges=10,
    inner=3,
    inner_edges=5,
    user_updates=4,
    item_updates=8,
    read_items=9,
    texts=7,
  )
  found = flops.with_repeats(counts, num_negatives=2)
  assert (found.users, found.user_edges) == (8, 6 * 2)
  assert (found.items, found.item_edges) == (8 * 3, 10 * 2)
  assert found.inner == pytest.approx(found.user_edges)
  assert found.inner_edges == pytest.approx(5 * 12 / 3)
  assert found.texts == 7 and found.item_updates == 8
