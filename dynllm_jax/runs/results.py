"""What a finished run says of itself: results.json and the printed table."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

import numpy as np

from dynllm_jax.engine import metrics
from dynllm_jax.engine import ranking
from dynllm_jax.engine import significance
from dynllm_jax.parallel import device_mesh
from dynllm_jax.progress import say
from dynllm_jax.runs import provenance
from dynllm_jax.runs import verdict as verdict_lib
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.status import Status
from dynllm_jax.runs.status import WATCHED
from dynllm_jax.types import EventLog
from dynllm_jax.types import TrainState

_PARTS = 20  # of the test split, over time


def collect(
  run: PreparedRun,
  best: Status,
  latest: Status,
  state: TrainState,
  ranked: dict[str, tuple[np.ndarray, float]],
  floor_ranks: dict[str, np.ndarray],
) -> dict[str, Any]:
  """The content of results.json.

  Args:
    run: the run.
    best: the status in the best epoch's checkpoint.
    latest: the status in the latest epoch's.
    state: the best epoch's.
    ranked: f64[events] ranks of `validation` and `test`, and the seconds that
      they took.
    floor_ranks: f[test events] of the floors, by name.

  Returns:
    JSON values.
  """
  test_ranks, test_seconds = ranked['test']
  splits = _metrics_of_splits(run, ranked)
  ranks = with_floors(run, test_ranks, floor_ranks)
  test = slice(run.log.validation_end, run.log.num_events)
  compared = verdict_lib.compare(
    ranks, run.log.users[test], columns(run.config.eval.ks)
  )
  verdict = compared['verdict']
  if verdict:
    verdict['advice'] = verdict_lib.advice(
      run, verdict, best, latest, splits['test']['groups']
    )
  floors = {n: best.floors[n] for n in run.floors if n in best.floors}
  left_out = {
    n: best.floors_left_out[n] for n in run.floors if n in best.floors_left_out
  }
  return {
    'system': run.name,
    **splits,
    'intervals': compared['intervals'],
    'verdict': verdict,
    'groups_of_floors': {
      name: _groups(run, 'test', found) for name, found in floor_ranks.items()
    },
    'over_time': _over_time(run, ranks),
    'floors': floors,
    'floors_left_out': left_out,
    # Of epochs, medians; compiling is left out.
    'train_events_per_s': statistics.median(
      epoch['events_per_s'] for epoch in latest.history
    ),
    'train_seconds_per_epoch': statistics.median(
      epoch['seconds'] for epoch in latest.history
    ),
    'rank_events_per_s': len(test_ranks) / test_seconds,
    'test_seconds': test_seconds,
    'seconds': run.stopwatch.seconds(),
    'epochs': latest.epochs,
    'best_epoch': best.best_epoch,
    'seed': best.identity['seed'],
    'started_from': best.started_from,
    'parameters': best.parameters,
    'train_step_flops': best.train_step_flops,
    'peak_memory_bytes': provenance.peak_memory_bytes(),
    'data': _about_log(run.log),
    'facets': run.facets,
    'evaluation': about_evaluation(run),
    'mesh': dict(run.mesh.shape),
    'bytes_per_device': device_mesh.bytes_per_device(
      {'memory': state.memory, 'inputs': run.inputs}
    ),
    'commit': best.commit,
    'machine': provenance.machine(),
  }


def with_floors(
  run: PreparedRun,
  test_ranks: np.ndarray,
  floor_ranks: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Ranks of the test events by system, the run's own first."""
  others = {n: ranks for n, ranks in floor_ranks.items() if n != run.name}
  return {run.name: test_ranks, **others}


def _metrics_of_splits(
  run: PreparedRun, ranked: dict[str, tuple[np.ndarray, float]]
) -> dict[str, dict[str, Any]]:
  """Metrics of each split, and of each group of its events (SPEC 5)."""
  return {
    split: {
      **metrics.summary(ranks, run.config.eval.ks),
      'groups': _groups(run, split, ranks),
    }
    for split, (ranks, _) in ranked.items()
  }


def _groups(
  run: PreparedRun, split: str, ranks: np.ndarray
) -> dict[str, dict[str, float]]:
  """Metrics of each group of a split's events."""
  log = run.log
  bounds = {
    'validation': slice(log.train_end, log.validation_end),
    'test': slice(log.validation_end, log.num_events),
  }
  return {
    name: metrics.summary(ranks[member[bounds[split]]], run.config.eval.ks)
    for name, member in metrics.event_groups(log).items()
  }


def _over_time(
  run: PreparedRun, ranks: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
  """`WATCHED` of all systems over the test split, in parts of equal size.

  Returns:
    For each part the unix seconds of its first and last event, its number of
    events and the systems' figures.
  """
  log = run.log
  events = np.arange(log.validation_end, log.num_events)
  parts = []
  for part in np.array_split(events, min(_PARTS, len(events))):
    inside = part - log.validation_end
    parts.append(
      {
        'first': int(log.start_time + log.times[part[0]]),
        'last': int(log.start_time + log.times[part[-1]]),
        'events': len(part),
        WATCHED: {
          name: float(np.mean(significance.gains(found[inside], WATCHED)))
          for name, found in ranks.items()
        },
      }
    )
  return parts


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


def about_evaluation(run: PreparedRun) -> dict[str, Any]:
  """How events were ranked, and how many groups no batch could hold."""
  eval_config = run.config.eval
  batch_size = eval_config.batch_size
  return {
    'batch_size': 'every distinct time' if run.system.by_time else batch_size,
    'ks': list(eval_config.ks),
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


def columns(ks: Sequence[int]) -> list[str]:
  """The metrics of a report's table, for `config.eval.ks`."""
  return [f'{metric}@{k}' for metric in ('recall', 'ndcg') for k in ks] + [
    'mrr'
  ]


def show(results: dict[str, Any]) -> None:
  """Prints the tables of `collect`'s results, floors beside the system."""
  data, evaluation = results['data'], results['evaluation']
  kind = 'simulated log' if data['simulated'] else 'log'
  say(
    f'\n{kind}: {data["source"]}; {data["users"]:,} users, '
    f'{data["items"]:,} items, {data["events"]:,} events'
  )
  facets = results['facets']
  say(f'facets: {facets["writer"]}; encoder: {facets["encoder"]}')

  ranked_items = (
    'whole catalogue'
    if evaluation['candidates'] == 'all'
    else 'items of the two last splits'
  )
  if results['evaluation']['filter_seen']:
    ranked_items += ' but what the user took before'
    if results['evaluation']['filter_seen_by'] == 'data':
      ranked_items += ' (nobody takes an item twice in training)'
  for split in ('validation', 'test'):
    rows = {results['system']: results[split]}
    rows.update({n: v[split] for n, v in results['floors'].items()})
    say(f'\n{split}, {ranked_items}')
    say(table(rows, columns(evaluation['ks'])))

  say('\n' + '\n'.join(verdict_lines(results)))

  say(
    f'\nepochs {results["epochs"]} (best {results["best_epoch"]}), training '
    f'{results["train_events_per_s"]:,.0f} events/s '
    f'({results["train_seconds_per_epoch"]:.1f} s an epoch), ranking '
    f'{results["rank_events_per_s"]:,.0f} events/s '
    f'({results["test_seconds"]:.1f} s for the test split), peak memory '
    f'{results["peak_memory_bytes"] / 2**30:.2f} GiB, '
    f'{results["parameters"]:,} parameters'
  )


def verdict_lines(results: dict[str, Any]) -> list[str]:
  """The verdict of results in words, and what to try where it is not ahead."""
  if not results['verdict']:
    return [
      'verdict: none, since no floor was ranked beside (config.eval.compare)'
    ]
  verdict = results['verdict']
  lines = [f'verdict: {verdict_lib.in_words(verdict)}']
  if verdict['advice']:
    lines += ['what to try:', *(f'  {line}' for line in verdict['advice'])]
  return lines


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
