"""The page of a log: a Markdown table of all systems, and a chart."""

import pathlib
from typing import Any

from dynllm_jax.engine import significance
from experiments import pages

COLUMNS = [f'{m}@{k}' for m in ('recall', 'ndcg') for k in (10, 20, 30)]
COLUMNS.append('mrr')

_Systems = list[tuple[str, dict[str, Any]]]  # names and entries, best first


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
  return '\n'.join(
    [
      *_about(result),
      *_figures(systems),
      *comparisons(result),
      *_groups(systems),
      *_cost(systems),
      '## Commands',
      '',
      '```',
      *(command for _, s in sorted(systems) for command in s['commands']),
      '```',
      '',
      f'![Recall@10]({result["log"]}.svg)',
      '',
    ]
  )


def _about(result: dict[str, Any]) -> list[str]:
  """The title, and what the figures are of."""
  kind = 'Simulated log' if result['simulated'] else 'Log'
  train, validation, test = result['split']
  return [
    f'# {result["log"]}',
    '',
    f'{kind}: {result["source"]}. It is split by time into {train:,} training, '
    f'{validation:,} validation and {test:,} test events. For every test event '
    'the whole catalogue is ranked, from strictly earlier events alone'
    + (
      ', without what the user took before.'
      if result['evaluation']['filter_seen']
      else '.'
    ),
    '',
    f'Facets: {result["facets"]["writer"]}; texts encoded by '
    f'{result["facets"]["encoder"]}. {result["protocol"]}',
    '',
    f'Machine: {pages.named(result["machine"])}.',
    '',
  ]


def _figures(systems: _Systems) -> list[str]:
  """The table of test figures."""
  columns = [_short(c) for c in COLUMNS]
  head = ['system', 'seeds', *columns, 'R@10 of seeds', 'R@10 95 %']
  body = [
    [
      name,
      len(s['seeds']),
      *(pages.digits(s['test'][c]) for c in COLUMNS),
      f'± {pages.digits(s["spread"]["recall@10"])}' if s['spread'] else '',
      '-'.join(pages.digits(x) for x in s['interval']),
    ]
    for name, s in systems
  ]

  return [
    '## Test',
    '',
    *pages.table(head, body),
    '',
    'Figures are means over the seeds; ± is the standard deviation over them. '
    'The interval is of the first seed alone, from a bootstrap over users.',
    '',
  ]


def comparisons(result: dict[str, Any]) -> list[str]:
  """The lines of the comparison of DynLLM's best variant with the best rival.

  None where there is nothing to compare. Where p is not known they say why,
  and what makes it known.
  """
  if not result['comparisons']:
    return []
  lines = [
    '## Against the best rival',
    '',
    *pages.table(
      ['system', 'rival', 'metric', 'ratio', 'p'],
      [
        [
          c['system'],
          c['rival'],
          _short(c['metric']),
          f'{c["ratio"]:.2f}',
          _shown_p(c['p']),
        ]
        for c in result['comparisons']
      ],
    ),
    '',
    "DynLLM's best variant is compared with the best other system; validation "
    'decides which are best. p is two-sided, from a paired bootstrap over '
    'users, with the first seed.',
    '',
  ]

  close = [
    _short(c['metric']) for c in result['comparisons'] if c['ranks'] == 'close'
  ]
  if close:
    lines += [
      f'p of {" and ".join(close)} comes from ranks that were made again on '
      'another machine: the figures of the rows are the same to four places, '
      'their check sums are not.',
      '',
    ]
  missing = [c['rows'] for c in result['comparisons'] if c['p'] is None]
  if missing:
    keys = sorted(set().union(*missing))
    lines += [
      '**p was not computed** where the table says "needs ranks": it takes '
      'the ranks of single test events, which are not in git and not on the '
      'machine that wrote this page. This makes them again; the next call of '
      '`experiments.overall` then fills in p:',
      '',
      '```',
      'python -m experiments.verify --experiment=overall '
      f'--logs={result["log"]}=EVENTS,ITEMS --rows={",".join(keys)}',
      '```',
      '',
    ]
  return lines


def _shown_p(p: float | None) -> str:
  """p as the table shows it, a bound where the resamples show no less."""
  if p is None:
    return 'needs ranks'
  smallest = significance.SMALLEST
  return f'{p:.3f}' if p > smallest else f'< {smallest:.3f}'


def _groups(systems: _Systems) -> list[str]:
  """The table of Recall@10 by group of events."""
  counts = systems[0][1]['group_events']
  groups = sorted(counts)
  return [
    '## Recall@10 by group',
    '',
    *pages.table(
      ['system', *(f'{g.replace("_", " ")} ({counts[g]:,})' for g in groups)],
      [
        [
          name,
          *(pages.digits(s['groups'][g]) if counts[g] else '-' for g in groups),
        ]
        for name, s in systems
      ],
    ),
    '',
  ]


def _cost(systems: _Systems) -> list[str]:
  """The table of sizes, times and commits."""
  head = [
    'system',
    'parameters',
    'epochs',
    'training s',
    'events/s',
    'ranking s',
    'peak GiB',
    'commit',
  ]
  body = [
    [
      name,
      f'{s["parameters"]:,}',
      ', '.join(map(str, s['epochs'])),
      f'{s["train_s"]:.0f}',
      f'{s["train_events_per_s"]:,.0f}',
      f'{s["rank_s"]:.0f}',
      f'{s["peak_memory_bytes"] / 2**30:.2f}',
      ', '.join(map(pages.commit, s['commits'])),
    ]
    for name, s in systems
  ]

  return ['## Cost', '', *pages.table(head, body), '']


def chart(result: dict[str, Any], path: pathlib.Path) -> None:
  """Draws the systems' test Recall@10, with intervals, as SVG."""
  systems = sorted(
    result['systems'].items(), key=lambda s: s[1]['test']['recall@10']
  )
  names = [name for name, _ in systems]
  values = [s['test']['recall@10'] for _, s in systems]
  colors = ['C0' if name.startswith('dynllm') else '0.65' for name in names]
  # An interval is of the first seed and need not contain the mean of all.
  low, high = zip(*(s['interval'] for _, s in systems))

  with pages.drawing(path, 7, 1 + 0.28 * len(names)) as (axes,):
    axes.barh(names, values, color=colors)
    axes.hlines(names, low, high, color='black', linewidth=1)
    axes.set_xlabel(
      'test Recall@10, whole catalogue; 95 % interval of the first seed'
    )
    axes.set_title(
      result['log'] + (' (simulated log)' if result['simulated'] else '')
    )


def _short(column: str) -> str:
  """The short name of a metric, R@10 for recall@10."""
  return (
    column.replace('recall', 'R').replace('ndcg', 'N').replace('mrr', 'MRR')
  )
