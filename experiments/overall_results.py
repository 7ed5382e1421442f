"""What the rows of a log say together: figures, intervals, significance."""

import json
import statistics
from typing import Any

from dynllm_jax import config as config_lib
from dynllm_jax.engine import significance
from dynllm_jax.runs import provenance
from dynllm_jax.storage import atomic
from experiments import grids
from experiments import overall_page
from experiments import rank_arrays
from experiments import result_rows
from experiments.result_rows import Log
from experiments.result_rows import Row


def summarize(rows: list[Row]) -> dict[str, Any]:
  """A system's entry of `results/<log>.json` from its rows, a row a seed."""
  first = rows[0]
  figures = [k for k in first['test'] if k not in ('groups', 'events')]
  groups = sorted(set().union(*(r['test']['groups'] for r in rows)))

  def mean_of(name: str) -> float:
    return statistics.fmean(r[name] for r in rows)

  def means(split: str) -> dict[str, float]:
    return {k: statistics.fmean(r[split][k] for r in rows) for k in figures}

  spread = {}
  if len(rows) > 1:
    spread = {k: statistics.stdev(r['test'][k] for r in rows) for k in figures}
  return {
    'seeds': [r['seed'] for r in rows],
    'test': means('test'),
    'validation': means('validation'),
    'spread': spread,
    'groups': {
      g: statistics.fmean(
        r['test']['groups'][g].get('recall@10', 0.0) for r in rows
      )
      for g in groups
    },
    'group_events': {g: first['test']['groups'][g]['events'] for g in groups},
    'train_s': mean_of('train_s'),
    'rank_s': mean_of('test_seconds'),
    'train_events_per_s': mean_of('train_events_per_s'),
    'epochs': [r['epochs'] for r in rows],
    'parameters': first['parameters'],
    'peak_memory_bytes': max(r['peak_memory_bytes'] for r in rows),
    'fields': first['fields'],
    'commits': sorted({r['commit'] for r in rows}),
    'commands': [r['command'] for r in rows],
    'interval': first[result_rows.INTERVAL],
  }


def compare(
  log: Log,
  found: dict[str, list[Row]],
  systems: dict[str, dict[str, Any]],
  stored: list[dict[str, Any]],
) -> list[dict[str, Any]]:
  """Compares DynLLM's best variant with the best other system, by metric.

  Which are best is decided on validation.

  Args:
    log: the log.
    found: the finished rows, by system.
    systems: an entry of `summarize` each.
    stored: the comparisons of the page that is there. Where the ranks of a
      comparison's rows are not on this machine, its p is taken from them.

  Returns:
    A comparison for each metric. `p` is None where it is not known; `ranks`
    says whether it comes from ranks that are the `same` as those of the rows or
    only `close`.
  """
  ours = [name for name in systems if name.startswith('dynllm')]
  others = [name for name in systems if name not in ours]
  if not ours or not others:
    return []

  known = {(c['metric'], *c.get('rows', ())): c for c in stored}
  comparisons = []
  for metric in ('recall@10', 'ndcg@10'):
    system, rival = (
      max(names, key=lambda name: systems[name]['validation'][metric])
      for names in (ours, others)
    )
    rows = [found[system][0], found[rival][0]]
    keys = [row['key'] for row in rows]
    significant = _significance(log, rows, metric)
    if significant['p'] is None and (metric, *keys) in known:
      old = known[metric, *keys]
      significant = {name: old[name] for name in significant}
    comparisons.append(
      {
        'metric': metric,
        'system': system,
        'rival': rival,
        'ratio': (
          systems[system]['test'][metric] / systems[rival]['test'][metric]
        ),
        **significant,
        'rows': keys,
      }
    )
  return comparisons


def _significance(log: Log, rows: list[Row], metric: str) -> dict[str, Any]:
  """`p` of two rows and what the `ranks` are that it comes from.

  Both are None where the ranks of a row are not on this machine.
  """
  arrays = [result_rows.read_arrays(log, row) for row in rows]
  if any(a is None for a in arrays):
    return {'p': None, 'ranks': None}

  gains = [significance.gains(a.ranks, metric) for a in arrays]
  same = all(
    rank_arrays.agreement(a, row) == 'same' for a, row in zip(arrays, rows)
  )
  return {
    'p': significance.p_value(*gains, arrays[0].users),
    'ranks': 'same' if same else 'close',
  }


def write_page(log: Log) -> None:
  """Writes `results/<log>.json`, the page and the chart from finished rows."""
  found = result_rows.finished(log)
  systems = {system: summarize(rows) for system, rows in found.items()}
  path = result_rows.RESULTS / f'{log.name}.json'
  stored = json.loads(path.read_text()) if path.exists() else {}

  first = next(iter(found.values()))[0]
  result = {
    'log': log.name,
    **{
      name: first[name]
      for name in (
        'source',
        'simulated',
        'split',
        'fingerprint',
        'facets',
        'evaluation',
        'machine',
      )
    },
    'commit': provenance.commit(),
    'protocol': _protocol(),
    'systems': systems,
    'comparisons': compare(log, found, systems, stored.get('comparisons', [])),
  }

  atomic.write_atomically(path, json.dumps(result, indent=2) + '\n')
  atomic.write_atomically(
    path.with_suffix('.md'), overall_page.markdown(result)
  )
  overall_page.chart(result, path.with_suffix('.svg'))


def _protocol() -> str:
  """How every learned system was tuned, trained and tested, in words."""
  batch = config_lib.default().eval.batch_size
  return (
    f'A learned system ranks {batch} events at a time from the same state. '
    f'{grids.described()}'
  )
