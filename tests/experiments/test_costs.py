"""Throughput and cost curves: what they count, on tiny logs."""

import json
import sys

import jax
import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.types import InputError
from experiments import aims
from experiments import flops
from experiments import machine_use
from experiments import phases
from experiments import random_logs
from experiments import scaling
from experiments import slices as slices_lib
from experiments import start_up
from experiments import worker

TINY = {
  'train.batch_size': 32,
  'eval.batch_size': 16,
  'model.dim': 8,
  'model.time_dim': 4,
  'model.num_neighbors': 3,
}


def tiny(system, spread=0, log=None):
  config = config_lib.default(system)
  config.update_from_flattened_dict(TINY)
  if system == 'dynllm':
    config.model.distill.top_r = 4
  log = log or random_logs.uniform(300, 20, 30)
  parts = slices_lib.build(
    config, log, *random_logs.texts(log, 6 if system == 'dynllm' else 0)
  )
  return config, slices_lib.Slices(*parts, 64, spread)


def test_a_part_does_not_replace_a_whole_page():
  known = ['tgn_b200', 'ngcf']
  for asked, out in (([], 'page'), (['tgn', 'ngcf'], 'page'), (['tgn'], 'b')):
    aims.check_asked('aims', asked, known, out, 'page')
  for asked, out, words in (
    (['tgnx'], 'b', "--aims: 'tgnx'"),
    (['tgn'], 'page', 'a part'),
  ):
    with pytest.raises(InputError, match=words):
      aims.check_asked('aims', asked, known, out, 'page')


def test_an_aim_is_met_or_not_or_not_run():
  fast, small = aims.Aim(3.0), aims.Aim(1.1, at_most=True)
  assert aims.line('fast', fast, {'value': 3.5}) == (
    'aim=fast value=3.5 wanted=3 met=yes'
  )
  assert aims.line('fast', fast, {'value': None}) == (
    'aim=fast value=- wanted=3 met=not run'
  )
  assert fast.met(2.9) == small.met(1.2) == 'no'
  assert small.met(1.1) == 'yes'


def test_the_page_and_the_figures_of_aims(tmp_path):
  aims.write(
    str(tmp_path / 'page'),
    'Title',
    {'log': 'a log'},
    {'fast': aims.Aim(3.0), 'left_out': aims.Aim(1.0)},
    {'fast': {'value': 2.0, 'peer': 'a peer'}},
    ['more'],
  )
  stored = json.loads((tmp_path / 'page.json').read_text())
  assert stored['aims'] == {
    'fast': {
      'wanted': 3.0,
      'at_most': False,
      'met': 'no',
      'value': 2.0,
      'peer': 'a peer',
    }
  }
  page = (tmp_path / 'page.md').read_text()
  assert '| fast | 2 | at least 3 | no | peer: a peer |' in page
  assert page.endswith('more\n')


@pytest.mark.parametrize('active', [0, 4])
def test_uniform_logs(active):
  log = random_logs.uniform(500, 40, 60, active=active)
  assert (np.diff(log.times) >= 0).all() and log.times[0] == 0
  assert log.users.min() >= 1 and log.users.max() <= log.num_users == 40
  assert log.items.min() >= 1 and log.items.max() <= log.num_items == 60
  assert not active or len(np.unique(log.users)) <= active


def test_retail_logs_have_invoices():
  log = random_logs.retail(0.1)
  _, lines = np.unique(log.times, return_counts=True)
  assert 15 < lines.mean() < 30 and lines.max() >= 500
  starts = np.flatnonzero(np.diff(log.times, prepend=-1))
  # One buyer an invoice, but where two start in the same second.
  buyers = [len(set(log.users[a:b])) for a, b in zip(starts, starts[1:])]
  assert np.mean(buyers) < 1.1


def test_slices_go_through_the_log_and_begin_again(pytestconfig):
  _, slices = tiny('tgn')
  sizes = [slices.step()[0] for _ in range(slices.num_slices + 1)]
  assert sizes[0] == sizes[-1]
  assert sum(sizes[:-1]) == slices.plan.size[: 2 * slices.num_slices].sum()
  assert int(slices.state.step) == 2 * len(sizes)
  assert slices.peak_bytes() > 0 and slices.bytes_per_step() > 0
  if pytestconfig.getoption('--all-combinations'):  # compiles four programs
    phases_make_up_a_step(slices)


def phases_make_up_a_step(slices):
  """A part of the test above, for the sake of what it has compiled."""
  before = int(slices.state.step)
  parts = phases.milliseconds(
    slices, config_lib.default('tgn').model, repeats=1
  )
  *phase, step = parts.values()
  assert list(parts)[-1] == 'step' and len(phase) == 5
  assert step == pytest.approx(sum(phase))
  assert parts['lookup'] > 0 and int(slices.state.step) == before


def test_slices_at_even_distances_reach_the_end():
  _, slices = tiny('tgn')
  _, few = tiny('tgn', spread=3)
  assert few.num_slices == 3
  starts = few.plan.start[0::2]
  seen = []
  for few._next in range(3):
    seen.append(few.rows()[0][0])
  last = slices.num_slices - 1
  assert seen == [starts[0], starts[last // 2], starts[last]]


def test_crowding_counts_events_and_distinct_times():
  log = random_logs.uniform(6, 3, 5)
  log = log.__class__(
    **{
      **vars(log),
      'users': np.array([1, 1, 1, 2, 2, 3], np.int32),
      'items': np.array([1, 2, 3, 4, 4, 4], np.int32),
      'times': np.array([0, 0, 0, 5, 6, 7]),
    }
  )
  _, slices = tiny('tgn', log=log)
  assert slices_lib.crowding(slices) == (3, 3.0)


def plain_counts(log, plan, near, depth, num_items):
  """Rows of the batches of a plan, event by event; no negatives."""
  events = list(zip(log.users, log.items, log.times))

  def latest(side, node, time):
    other = 1 - side
    seen = [e[other] for e in events if e[side] == node and e[2] < time]
    return seen[::-1][:near]

  rows = []
  for start, size in zip(plan.start, plan.size):
    batch = events[start : start + size]
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


@pytest.mark.parametrize('system', ['tgn', 'dynllm'])
def test_rows_of_a_batch_are_those_of_a_plain_count(system):
  log = random_logs.uniform(90, 6, 9)
  config, slices = tiny(system, log=log)
  found = flops.count_rows(slices.inputs, slices.plan, config.model, 0)
  expected = plain_counts(
    log, slices.plan, 3, config.model.num_layers, log.num_items
  )
  np.testing.assert_allclose(list(vars(found).values())[:-1], expected)
  assert (found.texts > 0) == (system == 'dynllm')


def test_operations_of_a_step_of_tgn():
  config = config_lib.default('tgn')
  config.update_from_flattened_dict(TINY)
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
  from dynllm_jax.layers.attention import SingleQueryAttention

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
  paper = flops.attention(rows, rows * near, d, key, d, 2)
  # A sum of n terms has one addition less; beyond the formula is a softmax.
  assert 0.9 * paper <= cost <= 2 * paper


def test_peaks_are_positive():
  assert machine_use.gemm_peak(64, repeats=1) > 0
  assert machine_use.copy_rate(1 << 10, repeats=1) > 0
  assert list(machine_use.gemm_rates([(8, 4, 2)], repeats=1)) == ['8x4x2']


PROGRESS = """
import time
from dynllm_jax.progress import Progress
bar = Progress('training', 100_000)
time.sleep(0.3)
bar(2_048, 0.5)
time.sleep(60)
"""


def test_start_up_ends_with_the_first_step():
  seconds = start_up.seconds_to_first_step([sys.executable, '-c', PROGRESS])
  assert 0.3 < seconds < 50


def test_start_up_says_what_a_command_said_that_failed():
  with pytest.raises(InputError, match='no such luck'):
    start_up.seconds_to_first_step(
      [sys.executable, '-c', 'raise SystemExit("no such luck")']
    )


def spec(kind, **fields):
  return {
    'kind': kind,
    'system': 'tgn',
    'num_events': 200,
    'num_users': 20,
    'num_items': 30,
    'active': 0,
    'llm_dim': 0,
    'slice_events': 64,
    'spread': 0,
    'batches': 2,
    'fields': {**TINY, **fields},
  }


def test_sizes_are_timed_in_processes_of_their_own():
  """Also that more nodes take the room of their tables, no more."""
  points = scaling.measure(
    {20: spec('train'), 4_000: {**spec('train'), 'num_users': 4_000}}, 1
  )
  small, large = points
  assert small['ratio'] == 1 and large['ratio'] > 0
  assert small['size'] == 20 and small['us_per_event'] > 0
  row = 8 * 4 + 4 * 4  # state; time, slot, offsets of events and facets
  assert large['table_bytes'] - small['table_bytes'] == pytest.approx(
    3_980 * row, rel=0.01
  )
  assert large['peak_rss'] > large['table_bytes']


def test_a_ranking_is_timed():
  process = worker.Worker({**spec('rank'), 'eval.batch_size': 16})
  found = process.step()
  process.close()
  assert found['events'] == 32 and found['seconds'] > 0


def test_curves_are_judged_by_their_ratios():
  point = lambda size, ratio: {
    'size': size,
    'ratio': ratio,
    'peak_rss': 12,
    'table_bytes': 10,
    'us_per_event': 1.0,
  }
  straight = [point(1_000, 1.0), point(10_000, 0.8)]
  ranking = [point(10_000, 1.0), point(100_000, 2.0), point(1_000_000, 2.1)]
  found = scaling.judge(
    {
      'events': {'tgn': straight},
      'nodes': {'tgn': straight},
      'all_nodes': {},
      'ranking': {'tgn': ranking},
    }
  )
  value = lambda name: found[name]['value']
  assert value('cost_events') == value('cost_nodes') == 1 / 0.8
  assert value('cost_memory') == value('cost_ranking_memory') == 12 / 10
  assert value('cost_ranking') == 2.1 / 2.0
  assert found['cost_nodes']['with_all_nodes_in_use'] is None
  nothing = scaling.judge(
    {k: {} for k in ('events', 'nodes', 'all_nodes', 'ranking')}
  )
  assert all(f['value'] is None for f in nothing.values())


def test_the_chart_of_the_curves(tmp_path):
  point = {'size': 10, 'us_per_event': 1.0}
  curves = {
    'events': {'tgn': [point]},
    'nodes': {},
    'all_nodes': {},
    'ranking': {'dynllm': [point]},
  }
  scaling.chart(curves, tmp_path / 'chart.svg')
  assert (tmp_path / 'chart.svg').read_text().startswith('<?xml')


def test_the_peer_trains_slice_by_slice(tmp_path):
  pytest.importorskip('torch_geometric')
  import subprocess

  from experiments import peer_tgn

  log = random_logs.uniform(120, 10, 15)
  np.savez(
    tmp_path / 'log.npz', users=log.users, items=log.items, times=log.times
  )
  done = subprocess.run(
    [
      sys.executable,
      peer_tgn.__file__,
      str(tmp_path / 'log.npz'),
      '20',
      '3',
      '8',
      '40',
    ],
    input='go\ngo\n',
    capture_output=True,
    text=True,
    check=True,
  )
  name, *seconds = done.stdout.splitlines()
  assert name.startswith('torch_geometric') and len(seconds) == 2
  assert all(float(s) > 0 for s in seconds)


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
