"""Charts of the report pages, as SVG that stands in the page itself.

Trees of elements rather than strings, so that every text is escaped. Colors
are classes of the page's style, which has a light and a dark one. A chart is
360 units wide and grows with its column, so that its letters can be read on a
phone.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import math
from typing import NamedTuple
from xml.etree import ElementTree

import markupsafe

WIDTH = 360
COLORS = 8  # of series, terms and parts, in the pages' style
_LEFT, _RIGHT, _TOP = 40, 8, 10

Points = Sequence[tuple[float, float]]


class Estimate(NamedTuple):
  """A figure of a system with the ends of its interval."""

  name: str
  value: float
  low: float
  high: float
  color: str  # a class of the pages' style, as s0


def lines(
  series: Mapping[str, Points], dates: bool = False, height: int = 170
) -> markupsafe.Markup:
  """A line chart.

  Args:
    series: points (x, y) by name, x ascending; the first stands out.
    dates: whether x is unix seconds; otherwise it is a whole number.
    height: of the chart, in its own units.

  Returns:
    The chart; empty where no series has a point.
  """
  points = [point for found in series.values() for point in found]
  if not points:
    return markupsafe.Markup()
  svg = _svg(height, ', '.join(series))
  bottom = height - 22
  xs, ys = zip(*points)
  ticks = _ticks(min(ys), max(ys))
  low, high = min(ticks[0], *ys), max(ticks[-1], *ys)
  x_of = _scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
  y_of = _scale(low, high, bottom, _TOP)

  for tick in ticks:
    y = y_of(tick)
    _add(svg, 'line', 'grid', x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
    _text(svg, _number(tick), _LEFT - 4, y + 3.5, 'end')
  for x in _x_ticks(min(xs), max(xs), dates):
    label = _date(x) if dates else f'{x:g}'
    anchor = 'middle' if min(xs) < x < max(xs) else 'start'
    anchor = 'end' if x == max(xs) > min(xs) else anchor
    _text(svg, label, x_of(x), height - 6, anchor)

  for number, (name, found) in enumerate(series.items()):
    path = ' '.join(f'{x_of(x):.1f},{y_of(y):.1f}' for x, y in found)
    color = f's{number % COLORS}'
    _add(svg, 'polyline', f'line {color}', points=path)
    for x, y in found:
      dot = _add(svg, 'circle', color, cx=x_of(x), cy=y_of(y), r=2.4)
      label = _date(x) if dates else f'{x:g}'
      ElementTree.SubElement(dot, 'title').text = f'{name}, {label}: {y:.4f}'
  return _markup(svg)


def estimates(rows: Sequence[Estimate]) -> markupsafe.Markup:
  """A row for each figure: a dot, and a line for its interval."""
  step, left = 24, 112
  svg = _svg(step * len(rows) + 24, 'figures with 95 % intervals')
  high = max(row.high for row in rows) or 1.0
  ticks = _ticks(0.0, high)
  x_of = _scale(0.0, max(high, ticks[-1]), left, WIDTH - 44)
  bottom = step * len(rows) + 2
  for tick in ticks:
    x = x_of(tick)
    _add(svg, 'line', 'grid', x1=x, x2=x, y1=4, y2=bottom)
    _text(svg, _number(tick), x, bottom + 14, 'middle')

  for number, row in enumerate(rows):
    y = step * number + 16
    _text(svg, _short(row.name), left - 6, y + 4, 'end')
    _add(
      svg,
      'line',
      f'line {row.color}',
      x1=x_of(row.low),
      x2=x_of(row.high),
      y1=y,
      y2=y,
    )
    dot = _add(svg, 'circle', row.color, cx=x_of(row.value), cy=y, r=4)
    ElementTree.SubElement(
      dot, 'title'
    ).text = (
      f'{row.name}: {row.value:.4f}, 95 % {row.low:.4f} to {row.high:.4f}'
    )
    _text(svg, f'{row.value:.4f}', WIDTH - 2, y + 4, 'end')
  return _markup(svg)


def timeline(
  past: Sequence[int], now: int, later: Sequence[int], found: Sequence[int]
) -> markupsafe.Markup:
  """A user's purchases on a line.

  Args:
    past: unix seconds of purchases before `now`.
    now: unix seconds, when the recommendation was made.
    later: unix seconds of purchases after it.
    found: those of `later` whose item was recommended.
  """
  svg = _svg(44, 'purchases over time')
  svg.set('class', 'small')
  times = [*past, now, *later]
  x_of = _scale(min(times), max(times), 8, WIDTH - 8)
  _add(svg, 'line', 'axis', x1=8, x2=WIDTH - 8, y1=16, y2=16)
  _add(svg, 'line', 'now', x1=x_of(now), x2=x_of(now), y1=4, y2=28)
  for kind, group in (('past', past), ('later', later), ('found', found)):
    for time in group:
      dot = _add(svg, 'circle', kind, cx=x_of(time), cy=16, r=4)
      ElementTree.SubElement(dot, 'title').text = _date(time)
  _text(svg, _date(min(times)), 8, 40, 'start')
  if max(times) > min(times):
    _text(svg, _date(max(times)), WIDTH - 8, 40, 'end')
  return _markup(svg)


def _svg(height: float, label: str) -> ElementTree.Element:
  return ElementTree.Element(
    'svg',
    {
      'viewBox': f'0 0 {WIDTH} {height:g}',
      'role': 'img',
      'aria-label': label,
    },
  )


def _add(
  parent: ElementTree.Element, tag: str, kind: str, **values: float | str
) -> ElementTree.Element:
  shown = {
    name: f'{value:.1f}' if isinstance(value, float) else str(value)
    for name, value in values.items()
  }
  return ElementTree.SubElement(parent, tag, {'class': kind, **shown})


def _text(
  parent: ElementTree.Element, text: str, x: float, y: float, anchor: str
) -> None:
  element = _add(parent, 'text', '', x=float(x), y=float(y))
  element.set('text-anchor', anchor)
  element.text = text


def _markup(svg: ElementTree.Element) -> markupsafe.Markup:
  # ElementTree escapes every text and attribute.
  return markupsafe.Markup(ElementTree.tostring(svg, encoding='unicode'))


def _scale(low: float, high: float, start: float, end: float):
  """The map of [low, high] to [start, end]; one point goes to the middle."""
  if high <= low:
    return lambda value: (start + end) / 2
  return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
  """Three to six round numbers that cover a range."""
  span = (high - low) or abs(high) or 1.0
  step = 10 ** math.floor(math.log10(span / 3))
  step *= next(f for f in (1, 2, 5, 10) if span / (f * step) <= 5)
  first, last = math.floor(low / step), math.ceil(high / step)
  return [number * step for number in range(first, last + 1)]


def _x_ticks(low: float, high: float, dates: bool) -> list[float]:
  if dates or high - low < 1:
    return [low, high] if high > low else [low]
  step = max(1, math.ceil((high - low) / 8))
  return [low + k * step for k in range(int((high - low) // step) + 1)]


def _number(value: float) -> str:
  return f'{value:.4g}'


def _short(name: str) -> str:
  return name if len(name) <= 18 else f'{name[:17]}…'


def _date(seconds: float) -> str:
  return f'{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}'
