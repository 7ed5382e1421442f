"""A writer that needs no language model: four texts by fixed rules.

Amounts are given in words such as "several", so that similar windows of
different users share a text; the texts hold what a prompt would show a
language model, and nothing that the window's purchases and the fixed item
table do not say.
"""

import bisect
import collections
from collections.abc import Callable
from collections.abc import Iterator
import time
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax.facets import item_keywords
from dynllm_jax.facets.item_keywords import Item
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.facets.writing import collect
from dynllm_jax.facets.writing import FacetTexts
from dynllm_jax.types import EventLog
from dynllm_jax.types import SECONDS_PER_DAY

VERSION = 1

_MAX_PURCHASES = 50  # the newest of a window
# A purchase weighs half as much as one ten purchases newer.
_RECENCY = [0.5 ** (k / 10) for k in range(_MAX_PURCHASES)]

_ACTIVITY = (
  (1, 'occasional buyer, one purchase'),
  (3, 'light buyer, a few purchases'),
  (9, 'regular buyer, several purchases'),
  (24, 'frequent buyer, many purchases'),
  (_MAX_PURCHASES, 'heavy buyer, very many purchases'),
)
_DAYS = (
  (1, ' on one day'),
  (3, ' on a few days'),
  (_MAX_PURCHASES, ' on many days'),
)
_MONTHS = (
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
)
_DAY_PARTS = ('nights', 'mornings', 'afternoons', 'evenings')
_DAY_PARTS_FROM = [hour * 3600 for hour in (5, 12, 17, 22)]


def describe(writer_config: ml_collections.ConfigDict) -> str:
  """The writer in words, for reports."""
  del writer_config
  return 'rule-written (no language model)'


def identity(
  writer_config: ml_collections.ConfigDict, store: str = ''
) -> dict[str, Any]:
  """What texts depend on besides the purchases; the rules have no fields."""
  del store
  return {'name': writer_config.name, 'version': VERSION}


def plan(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> None:
  """Says how much there is to write, which costs nothing."""
  del writer_config, log, store
  report(
    f'facets: {len(np.unique(profiles.closes)):,} windows, '
    f'{len(profiles):,} profiles; no language model is asked'
  )


def write(
  writer_config: ml_collections.ConfigDict,
  log: EventLog,
  profiles: Profiles,
  store: str = '',
  report: Callable[[str], None] = print,
) -> FacetTexts:
  """Writes crd, int, ctg and brd of each profile (SPEC 3.6).

  Args:
    writer_config: `config.facets.writer`; the rules have no settings.
    log: the prepared log.
    profiles: the users and windows to write for.
    store, report: not used, as the rules are quick.
  """
  del writer_config, store, report
  num_read = np.minimum(profiles.last - profiles.first, _MAX_PURCHASES)
  return collect(_rows(log, profiles), num_read.astype(np.int32))


def _rows(log: EventLog, profiles: Profiles) -> Iterator[tuple[str, ...]]:
  """The four texts of each profile."""
  table = item_keywords.describe_items(log.titles, log.categories, log.brands)
  unix = log.times + log.start_time
  for row in range(len(profiles)):
    events = profiles.newest(row, _MAX_PURCHASES)
    numbers = log.items[events].tolist()
    items = [table[number] for number in numbers]
    yield (
      _crowd(numbers, items, unix[events].tolist()),
      _interests(items),
      _categories(items),
      _brands(items),
    )


def _crowd(numbers: list[int], items: list[Item], times: list[int]) -> str:
  """How the user shops.

  Args:
    numbers: items of the purchases, newest first.
    items: those items in words.
    times: of the purchases, unix seconds.
  """
  count = len(items)
  days = [when // SECONDS_PER_DAY for when in times]
  num_days = len(set(days))

  activity = _level(_ACTIVITY, count)
  if count > 1:
    activity += _level(_DAYS, num_days)
  traits = [activity, _rhythm(times, days)]
  if count >= 10 * num_days:
    traits.append('large baskets')
  if count > 3:
    spread = len({item.kind for item in items}) / count
    traits.append(
      'a wide range'
      if spread > 0.7
      else 'a narrow range'
      if spread < 0.4
      else 'some range'
    )

  repeats = 1 - len(set(numbers)) / count
  if repeats:
    traits.append(
      'often the same again' if repeats > 0.2 else 'sometimes the same again'
    )

  brands = [item.brand for item in items if item.brand]
  if len(brands) > 2:
    distinct = set(brands)
    top = max(map(brands.count, distinct)) / len(brands)
    traits.append(
      'loyal to one brand'
      if top > 0.6
      else 'always another brand'
      if len(distinct) > 0.8 * len(brands)
      else 'a choice of brands'
    )

  crowds = collections.Counter(name for item in items for name in item.segments)
  usual = [name for name, n in crowds.most_common() if n > 0.25 * count]
  if usual:
    traits.append('drawn to ' + ' and '.join(sorted(usual[:2])))
  return ', '.join(traits)


def _rhythm(times: list[int], days: list[int]) -> str:
  """Month of the newest purchase, usual days and hours."""
  month = _MONTHS[time.gmtime(times[0]).tm_mon - 1]
  # Day 0 of unix time was a Thursday.
  weekend = sum((day + 3) % 7 > 4 for day in days) / len(days)
  usual = (
    'weekend' if weekend > 0.6 else 'weekday' if weekend < 0.2 else 'all-week'
  )
  seconds = [when % SECONDS_PER_DAY for when in times]
  if not any(seconds):  # the log has dates without a time of day
    return f'in {month}, {usual} shopping'
  quarters = [bisect.bisect(_DAY_PARTS_FROM, when) % 4 for when in seconds]
  quarter = max(set(quarters), key=quarters.count)
  if quarters.count(quarter) < 0.6 * len(quarters):
    return f'in {month}, {usual} shopping at all hours'
  return f'in {month}, {usual} {_DAY_PARTS[quarter]}'


def _interests(items: list[Item]) -> str:
  """The most telling words, newer purchases counting more."""
  scores: dict[str, float] = {}
  for recency, item in zip(_RECENCY, items):
    for word, weight in item.words:
      scores[word] = scores.get(word, 0.0) + recency * weight
  if not scores:
    return ''
  words = sorted(scores, key=scores.__getitem__, reverse=True)[:8]
  text = 'interested in ' + _join(words, 100)
  products = list(dict.fromkeys(i.product for i in items[:5] if i.product))
  return f'{text}; lately {_join(products[:2], 45)}' if products else text


def _categories(items: list[Item]) -> str:
  """Preferred kinds of products, then the groups that they belong to."""
  kinds = _ranked([item.path for item in items])
  if not kinds:
    return ''
  text = 'buys ' + _join(kinds[:4], 110)
  groups = _ranked([item.group for item in items])
  groups = [group for group in groups if group not in kinds[:1]]
  return f'{text}; mainly {_join(groups[:2], 40)}' if groups else text


def _brands(items: list[Item]) -> str:
  """Favored brands, each with what the user last bought of it."""
  brands = _ranked([item.brand for item in items])
  newest = {item.brand: item.kind for item in reversed(items)}
  named = [
    f'{brand} for {newest[brand]}' if newest[brand] else brand
    for brand in brands[:4]
  ]
  if not named:
    return ''
  more = ' and many others' if len(brands) > 8 else ''
  return f'favors {_join(named, 130)}{more}'


def _ranked(texts: list[str]) -> list[str]:
  """Distinct texts by recency-weighted count; of equal ones the newest first.

  Args:
    texts: of the purchases, newest first; '' does not count.
  """
  scores: dict[str, float] = {}
  for recency, text in zip(_RECENCY, texts):
    if text:
      scores[text] = scores.get(text, 0.0) + recency
  return sorted(scores, key=scores.__getitem__, reverse=True)


def _join(words: list[str], length: int) -> str:
  """Comma-separated words as far as they fit, always the first."""
  text = words[0][:length]
  for word in words[1:]:
    if len(text) + len(word) + 2 > length:
      break
    text += ', ' + word
  return text


def _level(levels: tuple[tuple[int, str], ...], value: int) -> str:
  """The words of the first level that a value does not exceed."""
  return next(name for top, name in levels if value <= top)
