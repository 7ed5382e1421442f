"""Charts hold what they are given, escaped."""

from xml.etree import ElementTree

import pytest

from dynllm_jax.runs import charts

HOSTILE = '<script>alert("&")</script>'


def elements(chart, kind):
  """Elements of a chart with a class."""
  tree = ElementTree.fromstring(str(chart))
  return [e for e in tree.iter() if kind in e.get('class', '').split()]


@pytest.mark.parametrize(
  'points',
  [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 1e-5), (2, 3e4), (40, -2.0)]],
)
@pytest.mark.parametrize('dates', [False, True])
def test_a_line_has_all_its_points_inside_the_chart(points, dates):
  chart = charts.lines({HOSTILE: points, 'other': points}, dates)
  assert '<script' not in chart
  dots = elements(chart, 's0')
  assert len(dots) == len(points) + 1  # and the line
  for dot in dots[1:]:
    assert 0 <= float(dot.get('cx')) <= charts.WIDTH
    assert 0 <= float(dot.get('cy')) <= 170
    assert HOSTILE in dot[0].text


def test_nothing_to_draw_is_no_chart():
  assert charts.lines({'a': []}) == ''


def test_estimates_lie_within_their_intervals():
  rows = [charts.Estimate(HOSTILE, 0.2, 0.1, 0.3, 's0')]
  rows.append(charts.Estimate('nothing', 0.0, 0.0, 0.0, 's1'))
  chart = charts.estimates(rows)
  assert '<script' not in chart
  line, dot = elements(chart, 's0')
  assert float(line.get('x1')) < float(dot.get('cx')) < float(line.get('x2'))
  charts.estimates(rows[1:])


def test_a_timeline_is_in_order():
  chart = charts.timeline([1, 5], 7, [8, 9], [9])
  xs = [float(dot.get('cx')) for dot in elements(chart, 'past')]
  xs += [float(elements(chart, 'now')[0].get('x1'))]
  xs += [float(dot.get('cx')) for dot in elements(chart, 'later')]
  assert xs == sorted(xs) and len(elements(chart, 'found')) == 1
  charts.timeline([], 7, [7], [])
