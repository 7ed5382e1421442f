r"""How the cost grows with events, nodes, the catalogue and devices.

    pip install -e '.[experiments]'
    python -m experiments.scaling

Prints `aim=<name> value=<figure> wanted=<figure> met=<yes|no|not run>` for
each aim and writes `experiments/results/scaling.json`, `.md` and `.svg`. Logs
are drawn at random (random_logs.py). Every size has a process of its own. The
sizes of a curve are timed in turn, slice by slice, so that other work on the
machine hurts all of them; the first slice of each warms up and is not counted.
A cost is the time of an event over that at the smallest size, and of these
ratios the median over slices.
"""

import itertools
import pathlib
import statistics
import time
from typing import Any

from absl import app
from absl import flags

from dynllm_jax import progress
from experiments import aims
from experiments import exit_status
from experiments import pages
from experiments import scaling_devices
from experiments.worker import Worker

_SLICES = flags.DEFINE_integer(
  'slices', 5, 'How many slices are counted, after one to warm up.'
)
_EVENTS = flags.DEFINE_integer('slice_events', 16_384, 'Events of a slice.')
_SYSTEMS = flags.DEFINE_list(
  'measured', ['tgn', 'dynllm'], 'Systems to measure.'
)
_LOGS = flags.DEFINE_list(
  'events', ['250000', '1000000', '4000000'], 'Lengths of logs.'
)
_NODES = flags.DEFINE_list(
  'nodes',
  ['10000', '100000', '1000000', '10000000'],
  'Numbers of nodes, half of them users.',
)
_ITEMS = flags.DEFINE_list(
  'items', ['10000', '100000', '1000000', '10000000'], 'Catalogues ranked.'
)
_FIELDS = flags.DEFINE_list(
  'fields', [], 'Fields of the configuration, as model.dim=128.'
)
_CURVES = flags.DEFINE_list(
  'curves',
  ['events', 'nodes', 'ranking', 'devices'],
  'Curves to measure; devices is experiments/scaling_devices.py.',
)
_OUT = flags.DEFINE_string(
  'out',
  str(pathlib.Path(__file__).parent / 'results' / 'scaling'),
  'Where .json, .md and .svg go.',
)

_USERS, _CATALOGUE = 5_651, 10_333  # of the curve over events: Tmall's
_ACTIVE = 5_000  # users, and items, with events where the others have none
_NODE_EVENTS = 250_000  # of each log of the curve over nodes
_LLM_DIM = 32  # narrow, as 10 million texts must fit into memory
_RANKED = 1_000_000  # batches times items of a timed ranking, about

Point = dict[str, Any]  # of a curve: size, ratio, figures
Curves = dict[str, dict[str, list[Point]]]  # by kind, then system


def measure(specs: dict[int, dict[str, Any]], slices: int) -> list[Point]:
  """Times the sizes of a curve in turn.

  Args:
    specs: of experiments/worker.py, by size.
    slices: how many are counted, after one to warm up.

  Returns:
    A point for each size: `size`, `us_per_event`, `ratio` (the median over
    slices of the time of an event over that at the smallest size), `peak_rss`,
    `table_bytes` and the worker's other figures.
  """
  workers = {size: Worker(spec) for size, spec in sorted(specs.items())}
  rounds, peaks = [], {}
  for _ in range(slices + 1):
    found = {size: worker.step() for size, worker in workers.items()}
    rounds.append({s: f['seconds'] / f['events'] for s, f in found.items()})
    peaks = {size: f['peak_rss'] for size, f in found.items()}
  for worker in workers.values():
    worker.close()

  smallest = min(specs)
  return [
    {
      'size': size,
      'us_per_event': 1e6 * statistics.median(r[size] for r in rounds[1:]),
      'ratio': statistics.median(r[size] / r[smallest] for r in rounds[1:]),
      'peak_rss': peaks[size],
      **worker.about,
    }
    for size, worker in workers.items()
  ]


def spec_of(
  kind: str,
  system: str,
  *,
  events: int,
  users: int,
  items: int,
  item_ids: bool = False,
  **rest: Any,
) -> dict[str, Any]:
  """What a worker measures.

  Args:
    kind: 'train' or 'rank'.
    system: its name.
    events, users, items: the size of the log.
    item_ids: whether each item has a learned vector.
    **rest: further entries, in place of those that all sizes share.

  Returns:
    The `spec` of experiments/worker.py.
  """
  fields = {'train.batch_size': 2048, 'model.item_id_embedding': item_ids}
  for text in _FIELDS.value:
    name, _, value = text.partition('=')
    fields[name] = int(value)

  return {
    'kind': kind,
    'system': system,
    'num_events': events,
    'num_users': users,
    'num_items': items,
    'active': 0,
    'llm_dim': _LLM_DIM if system == 'dynllm' else 0,
    'slice_events': _EVENTS.value,
    'spread': 0,
    'batches': 1,
    'fields': fields,
    **rest,
  }


def over_events(system: str) -> list[Point]:
  """Training on logs of several lengths, seen from end to end."""
  return measure(
    {
      events: spec_of(
        'train',
        system,
        events=events,
        users=_USERS,
        items=_CATALOGUE,
        spread=_SLICES.value + 1,
      )
      for events in map(int, _LOGS.value)
    },
    _SLICES.value,
  )


def over_nodes(system: str, active: int) -> list[Point]:
  """Training on logs with several numbers of nodes, with learned item ids.

  Args:
    system: its name.
    active: how many users, and how many items, have events, at random places
      of the tables; 0 for all.

  Returns:
    A point for each number of nodes.
  """
  return measure(
    {
      nodes: spec_of(
        'train',
        system,
        events=_NODE_EVENTS,
        users=nodes // 2,
        items=nodes // 2,
        item_ids=True,
        active=min(active, nodes // 2),
      )
      for nodes in map(int, _NODES.value)
    },
    _SLICES.value,
  )


def over_catalogue(system: str) -> list[Point]:
  """Ranking of several catalogues; the ratios are of the time per item."""
  points = measure(
    {
      items: spec_of(
        'rank',
        system,
        events=10_000,
        users=_USERS,
        items=items,
        batches=min(8, max(1, _RANKED // items)),
      )
      for items in map(int, _ITEMS.value)
    },
    _SLICES.value,
  )
  # Where the time per item does not grow, the cost is linear.
  first = points[0]['size']
  return [{**p, 'ratio': p['ratio'] * first / p['size']} for p in points]


def farthest(curves: dict[str, list[Point]]) -> float | None:
  """The ratio that is farthest from 1, up or down, as a number from 1."""
  ratios = [p['ratio'] for points in curves.values() for p in points]
  return max((max(r, 1 / r) for r in ratios), default=None)


def memory(curves: dict[str, list[Point]]) -> float | None:
  """Peak memory over the bytes of the tables, at the largest size."""
  ends = [points[-1] for points in curves.values()]
  return max((p['peak_rss'] / p['table_bytes'] for p in ends), default=None)


def several_blocks(points: list[Point]) -> list[Point]:
  """The points of catalogues of several blocks, with ratios among themselves.

  A catalogue that fits into one block is scored once, any other twice, so the
  two kinds cannot be compared.
  """
  block = 65_536  # config.eval.block_size
  many = [p for p in points if p['size'] > block]
  return [{**p, 'ratio': p['ratio'] / many[0]['ratio']} for p in many]


def judge(curves: Curves) -> dict[str, aims.Found]:
  """The figures of the aims.

  Args:
    curves: of the kinds 'events', 'nodes', 'all_nodes' and 'ranking'.

  Returns:
    By name of the aim.
  """
  ranking = {
    system: several_blocks(points) or points
    for system, points in curves['ranking'].items()
  }
  growth = [p['ratio'] for points in ranking.values() for p in points]
  return {
    'cost_events': {'value': farthest(curves['events'])},
    'cost_nodes': {
      'value': farthest(curves['nodes']),
      'with_all_nodes_in_use': farthest(curves['all_nodes']),
    },
    'cost_memory': {'value': memory(curves['nodes'])},
    'cost_ranking': {'value': max(growth, default=None)},
    'cost_ranking_memory': {'value': memory(curves['ranking'])},
  }


def main(argv: list[str]) -> int:
  """Measures the curves and writes the page."""
  del argv
  return exit_status.exit_status(_run)


def _run() -> None:
  """Does what the flags ask for.

  Raises:
    InputError: if a flag names no curve, or a part would replace the page.
  """
  aims.check_asked(
    'curves',
    _CURVES.value,
    list(flags.FLAGS['curves'].default),
    out=_OUT.value,
    default_out=flags.FLAGS['out'].default,
  )
  curves = _measure_curves()
  results = judge(curves)

  for name, found in results.items():
    progress.say(aims.line(name, aims.SCALING[name], found))
  aims.write(
    _OUT.value,
    'Cost curves',
    about={
      'log': 'drawn at random',
      'medians': f'of {_SLICES.value} slices of {_EVENTS.value:,} events',
    },
    aims=aims.SCALING,
    results=results,
    more=_page(curves),
    curves=curves,
  )
  chart(curves, pathlib.Path(_OUT.value + '.svg'))
  if 'devices' in _CURVES.value:
    scaling_devices.run()


def _measure_curves() -> Curves:
  """Measures the curves that were asked for, one after another."""
  began = time.perf_counter()
  curves: Curves = {'events': {}, 'nodes': {}, 'all_nodes': {}, 'ranking': {}}
  jobs = [
    ('events', 'events', over_events),
    ('nodes', 'nodes', lambda system: over_nodes(system, _ACTIVE)),
    ('nodes', 'all_nodes', lambda system: over_nodes(system, 0)),
    ('ranking', 'ranking', over_catalogue),
  ]
  for (flag, kind, curve), system in itertools.product(jobs, _SYSTEMS.value):
    # Ranking costs minutes a system, and all systems rank by the same code.
    last = system == _SYSTEMS.value[-1]
    if flag not in _CURVES.value or (kind == 'ranking' and not last):
      continue
    points = curves[kind][system] = curve(system)
    progress.say(
      f'{kind} {system}: '
      + ', '.join(
        f'{p["size"]:,}: {p["us_per_event"]:.4g} us ({p["ratio"]:.3f})'
        for p in points
      )
      + f'; {time.perf_counter() - began:.0f} s so far'
    )
  return curves


TITLES = {
  'events': 'Training, by events of the log',
  'nodes': f'Training with item ids, by nodes, {_ACTIVE:,} a side in use',
  'all_nodes': 'Training with item ids, by nodes, all in use',
  'ranking': 'Ranking, by items of the catalogue',
}


def _page(curves: Curves) -> list[str]:
  """A table for each curve, and what to know of them."""
  lines = []
  for kind, systems in curves.items():
    for system, points in systems.items():
      unit = 'ratio an item' if kind == 'ranking' else 'ratio'
      lines += [
        f'## {TITLES[kind]}: {system}',
        '',
        *pages.table(
          ['size', 'microseconds an event', unit, 'peak GiB', 'tables GiB'],
          [
            [
              f'{p["size"]:,}',
              f'{p["us_per_event"]:,.4g}',
              f'{p["ratio"]:.3f}',
              f'{p["peak_rss"] / 2**30:.2f}',
              f'{p["table_bytes"] / 2**30:.2f}',
            ]
            for p in points
          ],
        ),
        '',
      ]

  return [
    *lines,
    'A catalogue of more than one block (65,536 items) is scored twice, once '
    'for the positives and once to compare with them, so the ratios of such '
    'catalogues are judged among themselves. "Tables" are all arrays on the '
    'device; a ranking works on a copy of the memory, which counts too.',
    '',
    '![Cost](scaling.svg)',
  ]


def chart(curves: Curves, path: pathlib.Path) -> None:
  """Draws the time of an event over the size, a panel for each kind, as SVG."""
  with pages.drawing(path, 4 * len(curves), 3, len(curves)) as panels:
    for axes, (kind, systems) in zip(panels, curves.items()):
      for system, points in systems.items():
        axes.plot(
          [p['size'] for p in points],
          [p['us_per_event'] for p in points],
          marker='o',
          label=system,
        )

      axes.set_xscale('log')
      if kind == 'ranking':
        axes.set_yscale('log')
      else:
        axes.set_ylim(bottom=0)
      axes.set_title(TITLES[kind], fontsize='small')
      axes.set_ylabel('microseconds an event')
      if systems:
        axes.legend()


if __name__ == '__main__':
  app.run(main)
