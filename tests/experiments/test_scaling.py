"""Curves of cost over size: what is timed, and how it is judged."""

import pytest

from experiments import scaling
from experiments import worker
from tests.testing import tiny_slices


def spec(kind, **changes):
  """What a worker process is told: a tiny log, and what is timed on it."""
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
    'fields': tiny_slices.FIELDS,
    **changes,
  }


@pytest.mark.slow
def test_sizes_are_timed_in_processes_of_their_own():
  """Also that more nodes take the room of their tables, no more."""
  points = scaling.measure(
    {20: spec('train'), 4_000: spec('train', num_users=4_000)}, 1
  )
  small, large = points
  assert small['ratio'] == 1 and large['ratio'] > 0
  assert small['size'] == 20 and small['us_per_event'] > 0
  row = 8 * 4 + 4 * 4  # state; time, slot, offsets of events and facets
  assert large['table_bytes'] - small['table_bytes'] == pytest.approx(
    3_980 * row, rel=0.01
  )
  assert large['peak_rss'] > large['table_bytes']


@pytest.mark.slow
def test_a_ranking_is_timed():
  process = worker.Worker(spec('rank'))
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
