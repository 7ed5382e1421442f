"""The page of a log: a Markdown table of all systems, and a chart."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import io
import pathlib
from typing import Any

from dynllm_jax.storage import atomic
from experiments import significance

COLUMNS = [f'{m}@{k}' for m in ('recall', 'ndcg') for k in (10, 20, 30)]
COLUMNS.append('mrr')


def markdown(result: dict[str, Any]) -> str:
  """The page of `results/<log>.json`.

  Args:
    result: as experiments/overall.py writes it.

  Returns:
    Markdown; systems in descending test Recall@10.
  """
  systems = sorted(
    result['systems'].items(), key=lambda s: -s[1]['test']['recall@10']
  )
  kind = 'Simulated log' if result['simulated'] else 'Log'
  train, validation, test = result['split']
  lines = [
    f'# {result["log"]}',
    '',
    f'{kind}: {result["source"]}. Split by time: {train:,} training, '
    f'{validation:,} validation, {test:,} test events. The whole catalogue '
    'is ranked for every test event; an event sees what is strictly earlier.',
    '',
    f'Facets: {result["facets"]["writer"]}; texts encoded by '
    f'{result["facets"]["encoder"]}. {result["protocol"]}',
    '',
    f'Machine: {result["machine"]}.',
    '',
    '## Test',
    '',
    *table(
      [
        'system',
        'seeds',
        *(_short(c) for c in COLUMNS),
        'R@10 of seeds',
        'R@10 95 %',
      ],
      [
        [
          name,
          len(s['seeds']),
          *(digits(s['test'][c]) for c in COLUMNS),
          f'± {digits(s["spread"]["recall@10"])}' if s['spread'] else '',
          '-'.join(digits(x) for x in s['interval']),
        ]
        for name, s in systems
      ],
    ),
    '',
    'Figures are means over the seeds, ± is their standard deviation. The '
    'interval is a bootstrap over users, of the first seed.',
    '',
  ]
  if result['comparisons']:
    lines += [
      '## Against the best rival',
      '',
      *table(
        ['system', 'rival', 'metric', 'ratio', 'p'],
        [
          [
            c['system'],
            c['rival'],
            _short(c['metric']),
            f'{c["ratio"]:.2f}',
            f'{c["p"]:.3f}'
            if c['p'] > significance.SMALLEST
            else f'< {significance.SMALLEST:.3f}',
          ]
          for c in result['comparisons']
        ],
      ),
      '',
      'The best of each side on validation. p is two-sided, from a '
      'paired bootstrap over users of the first seed.',
      '',
    ]
  groups = sorted(systems[0][1]['groups'])
  counts = systems[0][1]['group_events']
  lines += [
    '## Recall@10 by group',
    '',
    *table(
      ['system', *(f'{g.replace("_", " ")} ({counts[g]:,})' for g in groups)],
      [
        [name, *(digits(s['groups'][g]) if counts[g] else '-' for g in groups)]
        for name, s in systems
      ],
    ),
    '',
  ]
  lines += [
    '## Cost',
    '',
    *table(
      [
        'system',
        'parameters',
        'epochs',
        'training s',
        'events/s',
        'ranking s',
        'peak GiB',
        'commit',
      ],
      [
        [
          name,
          f'{s["parameters"]:,}',
          ', '.join(map(str, s['epochs'])),
          f'{s["train_s"]:.0f}',
          f'{s["train_events_per_s"]:,.0f}',
          f'{s["rank_s"]:.0f}',
          f'{s["peak_memory_bytes"] / 2**30:.2f}',
          ', '.join(map(commit, s['commits'])),
        ]
        for name, s in systems
      ],
    ),
    '',
  ]
  lines += [
    '## Commands',
    '',
    '```',
    *(command for _, s in sorted(systems) for command in s['commands']),
    '```',
    '',
    f'![Recall@10]({result["log"]}.svg)',
    '',
  ]
  return '\n'.join(lines)


def chart(result: dict[str, Any], path: pathlib.Path) -> None:
  """Draws the systems' test Recall@10, with intervals, as SVG."""
  systems = sorted(
    result['systems'].items(), key=lambda s: s[1]['test']['recall@10']
  )
  names = [name for name, _ in systems]
  values = [s['test']['recall@10'] for _, s in systems]
  colors = ['C0' if name.startswith('dynllm') else '0.65' for name in names]
  # An interval belongs to the first seed and need not hold the seeds' mean.
  low, high = zip(*(s['interval'] for _, s in systems))
  with drawing(path, 7, 1 + 0.28 * len(names)) as (axes,):
    axes.barh(names, values, color=colors)
    axes.hlines(names, low, high, color='black', linewidth=1)
    axes.set_xlabel(
      'test Recall@10, whole catalogue; 95 % interval of the first seed'
    )
    axes.set_title(
      result['log'] + (' (simulated log)' if result['simulated'] else '')
    )


@contextlib.contextmanager
def drawing(
  path: pathlib.Path, width: float, height: float, panels: int = 1
) -> Iterator[Sequence[Any]]:
  """Panels side by side, to be drawn on; written as SVG at the end.

  Args:
    path: of the file, which is the same for the same figures.
    width, height: of all panels, inches.
    panels: how many.

  Yields:
    Matplotlib's axes of each.
  """
  import matplotlib

  matplotlib.use('svg')
  from matplotlib import pyplot

  matplotlib.rcParams['svg.hashsalt'] = 'dynllm_jax'
  figure, axes = pyplot.subplots(
    1, panels, figsize=(width, height), layout='constrained', squeeze=False
  )
  yield axes[0]
  content = io.BytesIO()
  figure.savefig(content, metadata={'Date': None})
  pyplot.close(figure)
  atomic.write_atomically(path, content.getvalue())


def table(head: list[str], body: list[list[Any]]) -> list[str]:
  """The lines of a Markdown table."""
  rows = [head, ['---'] * len(head), *body]
  return ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows]


def commit(text: str) -> str:
  """A commit in few characters, and whether the checkout had changes."""
  name, _, modified = text.partition('-')
  return f'{name[:7]}-{modified}' if modified else name[:7]


def _short(column: str) -> str:
  return (
    column.replace('recall', 'R').replace('ndcg', 'N').replace('mrr', 'MRR')
  )


def digits(value: float) -> str:
  """A figure between 0 and 1 to four places, `.1234`."""
  return f'{value:.4f}'.removeprefix('0')
