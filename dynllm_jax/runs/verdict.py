"""How a run compares with the floors that were ranked beside it (SPEC 5.4)."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.engine import significance
from dynllm_jax.runs import prepared
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.status import Status
from dynllm_jax.runs.status import WATCHED

LEVEL_FROM = 0.05  # p from which two systems count as level

_MANY = 0.1  # share of events from which a group of them is worth a word


def compare(
  ranks: Mapping[str, np.ndarray],
  users: np.ndarray,
  metrics: list[str],
  paired: Sequence[str] = (),
) -> dict[str, Any]:
  """Intervals of systems on the same events, and the first against the rest.

  Args:
    ranks: f[events] of each system, by name; the first is the one judged.
    users: i32[events].
    metrics: the metrics that get an interval.
    paired: systems of which every two are compared.

  Returns:
    `intervals`: the ends of the 95 % interval by system and metric; `verdict`:
    the first system beside the best of the others on these events, by
    `WATCHED`; None where there is no other; `pairs`: the same of every two of
    `paired`, in both orders.
  """
  names = list(ranks)
  wanted = [(name, metric) for name in names for metric in metrics]
  wanted += [(name, WATCHED) for name in names if WATCHED not in metrics]
  gains = [significance.gains(ranks[name], metric) for name, metric in wanted]
  means = dict(
    zip(wanted, significance.resampled_means(gains, users), strict=True)
  )
  intervals: dict[str, dict[str, list[float]]] = {name: {} for name in names}
  for name, metric in wanted:
    ends = significance.middle(means[name, metric])
    intervals[name][metric] = list(ends)

  def pair(own: str, rival: str) -> dict[str, Any]:
    difference = means[own, WATCHED] - means[rival, WATCHED]
    p = significance.p_of(difference)
    ahead = value[own] > value[rival]
    return {
      'metric': WATCHED,
      'system': own,
      'rival': rival,
      'value': value[own],
      'rival_value': value[rival],
      'ratio': value[own] / value[rival] if value[rival] else None,
      'difference': value[own] - value[rival],
      'interval': list(significance.middle(difference)),
      'p': p,
      'says': 'level' if p >= LEVEL_FROM else 'ahead' if ahead else 'behind',
    }

  value = {
    name: float(np.mean(gain))
    for (name, metric), gain in zip(wanted, gains, strict=True)
    if metric == WATCHED
  }
  own, *others = names
  best = max(others, key=lambda name: value[name], default=None)
  return {
    'intervals': intervals,
    'verdict': pair(own, best) if best else None,
    'pairs': [
      pair(own, rival) for own in paired for rival in paired if own != rival
    ],
  }


def in_words(verdict: Mapping[str, Any], of: str = 'the best floor') -> str:
  """A verdict of `compare` in a sentence; `of` says what the rival is."""
  where = {
    'ahead': 'is ahead of',
    'behind': 'is behind',
    'level': 'cannot be told from',
  }[verdict['says']]
  times = f'{verdict["ratio"]:.2f} times, ' if verdict['ratio'] else ''
  low, high = verdict['interval']
  return (
    f'{verdict["system"]} {where} {of}, {verdict["rival"]}: {WATCHED} '
    f'{verdict["value"]:.4f} against {verdict["rival_value"]:.4f} ({times}'
    f'difference {verdict["difference"]:+.4f}, 95 % interval {low:+.4f} to '
    f'{high:+.4f}, {shown_p(verdict["p"])}, paired by event, resampled by user)'
  )


def shown_p(p: float) -> str:
  """p as a report shows it, a bound where the resamples show no less."""
  smallest = significance.SMALLEST
  return f'p = {p:.3f}' if p > smallest else f'p < {smallest:.3f}'


def advice(
  run: PreparedRun,
  verdict: Mapping[str, Any],
  best: Status,
  latest: Status,
  groups: Mapping[str, Mapping[str, float]],
) -> list[str]:
  """What to try where a system is not ahead of the best floor.

  Every line follows from the configuration, from how training went or from
  what the test events are.

  Args:
    run: the run.
    verdict: of `compare`.
    best: the status in the best epoch's checkpoint.
    latest: the status in the latest epoch's.
    groups: metrics of the test events' groups.

  Returns:
    Lines, the most promising first; none where the system is ahead.
  """
  if verdict['says'] == 'ahead':
    return []
  model, train = run.config.model, run.config.train
  lines = []

  variants = config_lib.variants_of(model)
  off = [
    name
    for name in variants
    if not all(model.get(term) for term in config_lib.VARIANTS[name])
  ]
  if off:
    lines.append(
      f'--config=FILE:{model.name}+{off[-1]} adds terms that read what the '
      'floors count'
    )
  lines += _of_training(run, best, latest)

  events = sum(groups[name]['events'] for name in ('head', 'tail'))
  share = {n: g['events'] / max(1, events) for n, g in groups.items()}
  # The term of texts reads them already.
  reads_texts = model.get('item_text', True) or model.get('text_term', False)
  if share['new_item'] > _MANY and not reads_texts:
    lines.append(
      f'{share["new_item"]:.0%} of the test events are of items without a '
      'training event: --config.model.item_text=True reads their texts'
    )
  if model.get('item_id_embedding') is False:
    lines.append(
      '--config.model.item_id_embedding=True learns a vector for every item'
    )
  if run.system.feed != 'none' and train.loss == 'bpr':
    lines.append(
      '--config.train.loss=softmax --config.train.num_negatives=128 compares '
      'each purchase with many items at once'
    )
  lines.append(
    f'--config=FILE:{verdict["rival"]} is the floor itself: it only counts, '
    'and on this log nothing else was shown to be better'
  )
  return lines


def _of_training(run: PreparedRun, best: Status, latest: Status) -> list[str]:
  """What to try because of how training went."""
  if run.system.feed == 'none' or best.best_epoch is None:
    return []
  rate, epochs = run.config.train.learning_rate, prepared.num_epochs(run)
  if best.best_epoch == latest.epochs == epochs:
    return [
      f'the last epoch was the best: --config.train.num_epochs={2 * epochs} '
      'goes on in the same --workdir'
    ]
  if best.best_epoch == 1 and latest.epochs > 1:
    return [
      'the first epoch was the best: a lower rate, '
      f'--config.train.learning_rate={rate / 3:.1g}'
    ]
  return []
