"""What a finished run says of itself: results.json and the printed table."""

from collections.abc import Mapping
import statistics
from typing import Any

import numpy as np

from dynllm_jax import progress
from dynllm_jax.engine import metrics
from dynllm_jax.parallel import device_mesh
from dynllm_jax.runs import provenance
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.types import TrainState

say = progress.say


def collect(
  run: PreparedRun,
  status: dict[str, Any],
  latest: dict[str, Any],
  state: TrainState,
  ranked: dict[str, tuple[np.ndarray, float]],
) -> dict[str, Any]:
  """The content of results.json.

  Args:
    run: the run.
    status: of the best epoch's checkpoint.
    latest: of the latest epoch's.
    state: the best epoch's.
    ranked: ranks and seconds of `validation` and `test`.

  Returns:
    JSON values.
  """
  log, eval_config = run.log, run.config.eval
  groups = metrics.event_groups(log)
  bounds = {
    'validation': slice(log.train_end, log.validation_end),
    'test': slice(log.validation_end, log.num_events),
  }
  figures = {}
  for split, (ranks, _) in ranked.items():
    figures[split] = metrics.summary(ranks, eval_config.ks)
    figures[split]['groups'] = {
      name: metrics.summary(ranks[member[bounds[split]]], eval_config.ks)
      for name, member in groups.items()
    }
  rates = [epoch['events_per_s'] for epoch in latest['history']]
  ranks, seconds = ranked['test']
  return {
    'system': run.name,
    **figures,
    **{
      kind: {
        name: status[kind][name] for name in run.floors if name in status[kind]
      }
      for kind in ('floors', 'floors_left_out')
    },
    'train_events_per_s': statistics.median(rates),
    'train_seconds_per_epoch': statistics.median(
      epoch['seconds'] for epoch in latest['history']
    ),
    'rank_events_per_s': len(ranks) / seconds,
    'test_seconds': seconds,
    'epochs': latest['epochs'],
    'best_epoch': status['best_epoch'],
    'seed': status['identity']['seed'],
    'parameters': status['parameters'],
    'train_step_flops': status['train_step_flops'],
    'peak_memory_bytes': provenance.peak_memory_bytes(),
    'data': {
      'source': log.source,
      'simulated': log.simulated,
      'fingerprint': log.fingerprint,
      'users': log.num_users,
      'items': log.num_items,
      'events': log.num_events,
      'train_events': log.train_end,
      'validation_events': log.validation_end - log.train_end,
      'test_events': log.num_events - log.validation_end,
      'counts': log.counts,
    },
    'facets': run.facets,
    'evaluation': {
      'batch_size': (
        'every distinct time' if run.system.by_time else eval_config.batch_size
      ),
      'candidates': eval_config.candidates,
      'filter_seen': eval_config.filter_seen,
      'groups_of_equal_times_over_a_batch': {
        **{
          name: run.rank_plans[name].num_split_groups
          for name in ('validation', 'test')
        },
        'train': run.train_plan.num_split_groups,
      },
    },
    'mesh': dict(run.mesh.shape),
    'bytes_per_device': device_mesh.bytes_per_device(
      {'memory': state.memory, 'inputs': run.inputs}
    ),
    'commit': status['commit'],
    'machine': provenance.machine(),
  }


def show(run: PreparedRun, results: dict[str, Any]) -> None:
  """Prints the tables of `collect`'s results, floors beside the system."""
  log = run.log
  kind = 'simulated log' if log.simulated else 'log'
  say(
    f'\n{kind}: {log.source}; {log.num_users:,} users, '
    f'{log.num_items:,} items, {log.num_events:,} events'
  )
  say(f'facets: {run.facets["writer"]}; encoder: {run.facets["encoder"]}')
  columns = [
    f'{metric}@{k}' for metric in ('recall', 'ndcg') for k in run.config.eval.ks
  ] + ['mrr']
  for split in ('validation', 'test'):
    rows = {run.name: results[split]}
    rows.update({n: v[split] for n, v in results['floors'].items()})
    say(
      f'\n{split}, whole catalogue'
      if run.config.eval.candidates == 'all'
      else f'\n{split}, items of the two last splits'
    )
    say(table(rows, columns))
  say(
    f'\nepochs {results["epochs"]} (best {results["best_epoch"]}), training '
    f'{results["train_events_per_s"]:,.0f} events/s '
    f'({results["train_seconds_per_epoch"]:.1f} s an epoch), ranking '
    f'{results["rank_events_per_s"]:,.0f} events/s '
    f'({results["test_seconds"]:.1f} s for the test split), peak memory '
    f'{results["peak_memory_bytes"] / 2**30:.2f} GiB, '
    f'{results["parameters"]:,} parameters'
  )


def table(rows: Mapping[str, Mapping[str, float]], columns: list[str]) -> str:
  """A text table, a row a system, figures to four places."""
  width = max(len(name) for name in rows)
  lines = [' ' * width + ''.join(f'{c:>12}' for c in columns)]
  for name, values in rows.items():
    cells = ''.join(
      f'{values[c]:>12.4f}' if c in values else f'{"-":>12}' for c in columns
    )
    lines.append(f'{name:<{width}}{cells}')
  return '\n'.join(lines)
