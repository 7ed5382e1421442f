"""What a finished run says of itself: results.json and the printed table."""

from collections.abc import Mapping
import statistics
from typing import Any

import numpy as np

from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.parallel import device_mesh
from dynllm_jax.progress import say
from dynllm_jax.runs import provenance
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.status import Status
from dynllm_jax.types import EventLog
from dynllm_jax.types import TrainState


def collect(
  run: PreparedRun,
  best: Status,
  latest: Status,
  state: TrainState,
  ranked: dict[str, tuple[np.ndarray, float]],
) -> dict[str, Any]:
  """The content of results.json.

  Args:
    run: the run.
    best: the status in the best epoch's checkpoint.
    latest: the status in the latest epoch's.
    state: the best epoch's.
    ranked: f64[events] ranks of `validation` and `test`, and the seconds that
      they took.

  Returns:
    JSON values.
  """
  test_ranks, test_seconds = ranked['test']
  floors = {n: best.floors[n] for n in run.floors if n in best.floors}
  left_out = {
    n: best.floors_left_out[n] for n in run.floors if n in best.floors_left_out
  }
  return {
    'system': run.name,
    **_metrics_of_splits(run, ranked),
    'floors': floors,
    'floors_left_out': left_out,
    # Of epochs, medians: the first one compiles.
    'train_events_per_s': statistics.median(
      epoch['events_per_s'] for epoch in latest.history
    ),
    'train_seconds_per_epoch': statistics.median(
      epoch['seconds'] for epoch in latest.history
    ),
    'rank_events_per_s': len(test_ranks) / test_seconds,
    'test_seconds': test_seconds,
    'epochs': latest.epochs,
    'best_epoch': best.best_epoch,
    'seed': best.identity['seed'],
    'parameters': best.parameters,
    'train_step_flops': best.train_step_flops,
    'peak_memory_bytes': provenance.peak_memory_bytes(),
    'data': _about_log(run.log),
    'facets': run.facets,
    'evaluation': _about_evaluation(run),
    'mesh': dict(run.mesh.shape),
    'bytes_per_device': device_mesh.bytes_per_device(
      {'memory': state.memory, 'inputs': run.inputs}
    ),
    'commit': best.commit,
    'machine': provenance.machine(),
  }


def _metrics_of_splits(
  run: PreparedRun, ranked: dict[str, tuple[np.ndarray, float]]
) -> dict[str, dict[str, Any]]:
  """Metrics of each split, and of each group of its events (SPEC 5)."""
  log, ks = run.log, run.config.eval.ks
  bounds = {
    'validation': slice(log.train_end, log.validation_end),
    'test': slice(log.validation_end, log.num_events),
  }
  groups = metrics.event_groups(log)
  return {
    split: {
      **metrics.summary(ranks, ks),
      'groups': {
        name: metrics.summary(ranks[member[bounds[split]]], ks)
        for name, member in groups.items()
      },
    }
    for split, (ranks, _) in ranked.items()
  }


def _about_log(log: EventLog) -> dict[str, Any]:
  return {
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
  }


def _about_evaluation(run: PreparedRun) -> dict[str, Any]:
  """How events were ranked, and how many groups no batch could hold."""
  eval_config = run.config.eval
  batch_size = eval_config.batch_size
  return {
    'batch_size': 'every distinct time' if run.system.by_time else batch_size,
    'candidates': eval_config.candidates,
    # As it was decided, and whether the data or the configuration did.
    'filter_seen': ranking.filters_seen(eval_config.filter_seen, run.log),
    'filter_seen_by': (
      'data' if eval_config.filter_seen == 'auto' else 'configuration'
    ),
    'groups_of_equal_times_over_a_batch': {
      'validation': run.rank_plans['validation'].num_split_groups,
      'test': run.rank_plans['test'].num_split_groups,
      'train': run.train_plan.num_split_groups,
    },
  }


def show(run: PreparedRun, results: dict[str, Any]) -> None:
  """Prints the tables of `collect`'s results, floors beside the system."""
  log, eval_config = run.log, run.config.eval
  kind = 'simulated log' if log.simulated else 'log'
  say(
    f'\n{kind}: {log.source}; {log.num_users:,} users, '
    f'{log.num_items:,} items, {log.num_events:,} events'
  )
  say(f'facets: {run.facets["writer"]}; encoder: {run.facets["encoder"]}')

  columns = [
    f'{metric}@{k}' for metric in ('recall', 'ndcg') for k in eval_config.ks
  ]
  ranked_items = (
    'whole catalogue'
    if eval_config.candidates == 'all'
    else 'items of the two last splits'
  )
  if results['evaluation']['filter_seen']:
    ranked_items += ' but what the user took before'
    if results['evaluation']['filter_seen_by'] == 'data':
      ranked_items += ' (nobody takes an item twice in training)'
  for split in ('validation', 'test'):
    rows = {run.name: results[split]}
    rows.update({n: v[split] for n, v in results['floors'].items()})
    say(f'\n{split}, {ranked_items}')
    say(table(rows, [*columns, 'mrr']))

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
  """A text table, a row for each system, figures to four places.

  Args:
    rows: values by column, of each system by its name.
    columns: those that are shown; a missing value is shown as '-'.
  """
  width = max(len(name) for name in rows)
  lines = [' ' * width + ''.join(f'{c:>12}' for c in columns)]
  for name, values in rows.items():
    cells = ''.join(
      f'{values[c]:>12.4f}' if c in values else f'{"-":>12}' for c in columns
    )
    lines.append(f'{name:<{width}}{cells}')
  return '\n'.join(lines)
