"""`report.html`: a run on a page that needs no network and no script."""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import functools
from typing import Any

import jinja2
import numpy as np

from dynllm_jax.engine import significance
from dynllm_jax.runs import charts
from dynllm_jax.runs import results as results_lib
from dynllm_jax.runs import verdict as verdict_lib
from dynllm_jax.runs.cases import Case
from dynllm_jax.runs.cases import Purchase
from dynllm_jax.runs.cases import Recommendation
from dynllm_jax.runs.status import WATCHED
from dynllm_jax.types import FACETS

_FACETS = dict(
  zip(
    FACETS,
    (
      'crowd segments',
      'personal interests',
      'preferred categories',
      'favored brands',
    ),
    strict=True,
  )
)
# The terms of a score in words; a term that is not here has its own name.
_TERMS = {
  'network': 'network: memory, neighbors, texts and facets',
  'text': 'text: like the texts of earlier purchases',
  'copy': "copy: the user's own earlier purchases",
  'walk': 'walk: what others took who took the same',
  'item_scores': 'item_scores: counts',
  'counts': 'counts: what was taken before, follows, or is taken these days',
}
# Groups of events, each with what the other events are.
_GROUPS = (
  ('new_user', 'new users', 'known users'),
  ('new_item', 'new items', 'known items'),
  ('repeat', 'repeat purchases', 'first purchases'),
  ('head', 'head items', 'tail items'),
)


@functools.cache
def environment() -> jinja2.Environment:
  """Where the templates of pages are; every value in them is escaped."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader('dynllm_jax', 'runs/pages'),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
  )


def page(
  results: Mapping[str, Any],
  ranks: Mapping[str, np.ndarray],
  history: Sequence[Mapping[str, Any]],
  cases: Sequence[Case],
) -> str:
  """The page of a run.

  Args:
    results: the content of `results.json`.
    ranks: f[test events] of the system and of its floors, by name.
    history: a record an epoch, the lines of `metrics.jsonl`.
    cases: users as examples.

  Returns:
    HTML.
  """
  verdict = results['verdict']
  rival = verdict['rival'] if verdict else None
  terms = list(dict.fromkeys(t for case in cases for t in terms_of(case)))
  colors = {term: f't{n % charts.COLORS}' for n, term in enumerate(terms)}
  num_new = sum(not case.num_past for case in cases)

  columns = results_lib.columns(results['evaluation']['ks'])

  return rendered(
    'run.html.jinja',
    results=results,
    verdict=verdict,
    headline=_headline(verdict) if verdict else '',
    verdict_words=verdict_lib.in_words(verdict) if verdict else '',
    rival=rival,
    columns=columns,
    figures=figure_rows(
      ranks, results['intervals'], columns, [results['system']]
    ),
    estimates=charts.estimates(_estimates(results)),
    over_time=_over_time(results, rival),
    loss=_curve(history, 'loss'),
    recall=_curve(history, f'validation_{WATCHED}'),
    groups=group_rows(results, rival),
    cost=cost(results),
    seconds=_seconds(results['seconds']),
    spent=duration(sum(results['seconds'].values())),
    cases=[_case(case, colors) for case in cases],
    new_users=f', {num_new} of them without an earlier one' if num_new else '',
    terms=[
      {'name': _TERMS.get(term, term), 'color': color}
      for term, color in colors.items()
    ],
    facet_note=_facet_note(results),
    made=_made(results),
  )


def rendered(template: str, **values: Any) -> str:
  """A page from its template; half a character is shown as a question mark."""
  text = environment().get_template(template).render(**values)
  return text.encode('utf-8', 'replace').decode()


def terms_of(case: Case) -> list[str]:
  """The terms of the score that a case was made with."""
  return list(case.recommended[0].lifts) if case.recommended else []


def duration(seconds: float) -> str:
  """Seconds in words, as `71 s` or `12 min`."""
  if seconds < 10:
    return f'{seconds:.1f} s'
  return f'{seconds:.0f} s' if seconds < 300 else f'{seconds / 60:.0f} min'


def date(seconds: float) -> str:
  """The day, UTC, of unix seconds."""
  return f'{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}'


def _headline(verdict: Mapping[str, Any]) -> str:
  ratio = verdict['ratio']
  how = f' ({ratio:.2f} times its Recall@10)' if ratio else ''
  return {
    'ahead': f'Ahead of every floor, {verdict["rival"]} the best of them{how}',
    'behind': f'Behind {verdict["rival"]}, which only counts{how}',
    'level': f'Not to be told from {verdict["rival"]}, which only counts{how}',
  }[verdict['says']]


def figure_rows(
  ranks: Mapping[str, np.ndarray],
  intervals: Mapping[str, Any],
  columns: Sequence[str],
  own: Sequence[str],
) -> list[dict[str, Any]]:
  """The rows of a table of figures with intervals, best first.

  Args:
    ranks: f[events] of each system, by name.
    intervals: by system and metric.
    columns: the metrics.
    own: the systems that stand out.
  """

  def cell(name: str, column: str) -> dict[str, Any]:
    low, high = intervals[name][column]
    value = float(np.mean(significance.gains(ranks[name], column)))
    return {
      'number': value,
      'value': f'{value:.4f}',
      'interval': f'{low:.4f}–{high:.4f}',
    }

  rows = [
    {
      'name': name,
      'is_own': name in own,
      'cells': [cell(name, column) for column in columns],
    }
    for name in ranks
  ]
  return sorted(rows, key=lambda row: -row['cells'][0]['number'])


def _estimates(results: Mapping[str, Any]) -> list[charts.Estimate]:
  """`WATCHED` of all systems with intervals, best first."""
  parts = results['over_time']
  events = sum(part['events'] for part in parts)
  rows = []
  for name, intervals in results['intervals'].items():
    low, high = intervals[WATCHED]
    value = sum(p['events'] * p[WATCHED][name] for p in parts) / events
    is_own = name == results['system']
    rows.append(
      charts.Estimate(name, value, low, high, 's0' if is_own else 's1')
    )
  return sorted(rows, key=lambda row: -row.value)


def _over_time(results: Mapping[str, Any], rival: str | None) -> Any:
  names = [results['system'], *filter(None, [rival])]
  parts = results['over_time']
  return charts.lines(
    {
      name: [
        ((part['first'] + part['last']) / 2, part[WATCHED][name])
        for part in parts
      ]
      for name in names
    },
    dates=True,
  )


def _curve(history: Sequence[Mapping[str, Any]], name: str) -> Any:
  """A figure of the epochs; empty where no epoch has it."""
  return charts.lines(
    {name: [(r['epoch'], r[name]) for r in history if name in r]}
  )


def group_rows(
  results: Mapping[str, Any], rival: str | None
) -> list[dict[str, Any]]:
  """Recall@10 by group, of the system and of the best floor.

  Of the events outside a group the figure follows from the whole and the
  group's.
  """
  k = min(results['evaluation']['ks'], key=lambda k: abs(k - 10))
  metric = f'recall@{k}'
  own = results['test']
  other = results['groups_of_floors'].get(rival) if rival else None
  events = own['events']

  def shown(groups: Mapping[str, Any], whole: float, name: str) -> list[str]:
    inside = groups[name]['events']
    hits = groups[name].get(metric, 0.0) * inside
    outside = events - inside
    return [
      f'{hits / inside:.4f}' if inside else '-',
      f'{(whole * events - hits) / outside:.4f}' if outside else '-',
    ]

  rows = []
  for name, *words in _GROUPS:
    inside = own['groups'][name]['events']
    own_shown = shown(own['groups'], own[metric], name)
    rival_shown = ['', '']
    if other:
      whole = results['floors'][rival]['test'][metric]
      rival_shown = shown(other, whole, name)
    for word, count, mine, theirs in zip(
      words, (inside, events - inside), own_shown, rival_shown, strict=True
    ):
      rows.append(
        {
          'name': word,
          'events': count,
          'share': count / events,
          'own': mine,
          'rival': theirs,
        }
      )
  return rows


def cost(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What a run took, in words."""
  return [
    ('parameters', f'{results["parameters"]:,}'),
    ('epochs', f'{results["epochs"]}, the best {results["best_epoch"]}'),
    ('training', f'{results["train_events_per_s"]:,.0f} events/s'),
    ('an epoch', duration(results['train_seconds_per_epoch'])),
    ('ranking', f'{results["rank_events_per_s"]:,.0f} events/s'),
    ('peak memory', f'{results["peak_memory_bytes"] / 2**30:.2f} GiB'),
    (
      'tables on a device',
      f'{sum(results["bytes_per_device"].values()) / 2**20:,.0f} MiB',
    ),
  ]


def _seconds(parts: Mapping[str, float]) -> list[dict[str, Any]]:
  """The parts of the time, the longest first, one color each."""
  total = sum(parts.values()) or 1.0
  ordered = sorted(parts.items(), key=lambda part: -part[1])
  named = [part for part in ordered if part[0] != 'other']
  shown = dict(named[: charts.COLORS - 1])
  shown['other'] = total - sum(shown.values())
  return [
    {
      'name': name,
      'seconds': duration(seconds),
      'percent': f'{100 * seconds / total:.2f}',
      'color': f't{number}',
    }
    for number, (name, seconds) in enumerate(shown.items())
    if seconds >= 0.05
  ]


def _facet_note(results: Mapping[str, Any]) -> str:
  facets = results['facets']
  return (
    f'The four facet texts of the latest {facets["window_days"]:g} days with '
    f'purchases before then: {facets["writer"]}.'
  )


def _made(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Where the figures come from."""
  machine, evaluation = results['machine'], results['evaluation']
  batch = evaluation['batch_size']
  return [
    ('commit', results['commit']),
    ('seed', str(results['seed'])),
    (
      'machine',
      f'{machine["devices"]} x {machine["device"]} ({machine["platform"]}), '
      f'{machine["cores"]} cores, JAX {machine["jax"]}',
    ),
    (
      'ranked from one state',
      batch if isinstance(batch, str) else f'{batch} events',
    ),
    ('log', f'fingerprint {results["data"]["fingerprint"]}'),
    *(
      (f'log: {name}', f'{n:,}')
      for name, n in results['data']['counts'].items()
    ),
  ]


def _case(case: Case, colors: Mapping[str, str]) -> dict[str, Any]:
  """A user as the template shows them."""
  longest = max((_raised(item) for item in case.recommended), default=0.0)
  recommended = {item.item for item in case.recommended}
  found = [p.time for p in case.next if p.item in recommended]

  return {
    'user': case.user,
    'date': date(case.time),
    'num_past': case.num_past,
    'num_next': case.num_next,
    'found': sum(item.bought for item in case.recommended),
    'timeline': charts.timeline(
      case.past_times, case.time, case.next_times, found
    ),
    'facets': [(_FACETS[name], text) for name, text in case.facets.items()],
    'recommended': [
      _recommended(item, colors, longest) for item in case.recommended
    ],
    'past': [_purchase(p) for p in case.past],
    'next': [_purchase(p) for p in case.next],
    'more_next': case.num_next - len(case.next),
    'more_past': case.num_past - len(case.past),
  }


def _raised(item: Recommendation) -> float:
  """The sum of what lifts an item."""
  return sum(lift for lift in item.lifts.values() if lift > 0)


def _recommended(
  item: Recommendation, colors: Mapping[str, str], longest: float
) -> dict[str, Any]:
  """An item with its bar, as long as its lift beside the largest one."""
  raised = _raised(item)
  up = {n: lift for n, lift in item.lifts.items() if lift > 0}
  down = {n: lift for n, lift in item.lifts.items() if lift < -raised / 100}
  words = [
    f'{name} {lift / raised:.0%}'
    for name, lift in sorted(up.items(), key=lambda part: -part[1])
    if lift / raised >= 0.005
  ]
  words += [f'{name} lowers it by {-lift:.2f}' for name, lift in down.items()]

  return {
    'item': item.item,
    'title': item.title or item.item,
    'bought': item.bought,
    'bought_before': item.bought_before,
    'length': f'{100 * raised / longest:.1f}' if longest else '0',
    'bars': [
      {'color': colors[name], 'percent': f'{100 * lift / raised:.2f}'}
      for name, lift in up.items()
    ],
    'why': ', '.join(words),
  }


def _purchase(purchase: Purchase) -> dict[str, Any]:
  return {
    'item': purchase.item,
    'title': purchase.title or purchase.item,
    'date': date(purchase.time),
    'recommended': purchase.recommended,
  }
