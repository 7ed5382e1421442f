"""The second wording of prompts, for small models (SPEC 8.3).

A small model loses its way in a long list. So the window's purchases are
counted by category and by brand, only the newest are named, each string of the
answer has a name that says what is asked, and two worked examples show how. It
tells of fewer facts than the first wording (prompts.py): no dates, and no title
but the newest.
"""

import collections
from collections.abc import Iterable

import numpy as np

from dynllm_jax.facets import item_keywords
from dynllm_jax.facets import prompts
from dynllm_jax.types import EventLog

VERSION = 2  # raised whenever the same window gets another prompt

SYSTEM = """\
You describe one customer of a shop for a recommender system. You are told \
what the customer bought in a period. Answer four questions, each in a few \
words:
"customer": What kind of customer is it?
"interests": What is the customer interested in?
"categories": Which categories does the customer prefer?
"brands": Which brands does the customer favor?
Use only what you are told. Where categories or brands are unknown, answer \
"unknown". Answer with one JSON object."""
HEADER = 'Purchases: '
NAMES = ('customer', 'interests', 'categories', 'brands')
EXAMPLES = (
  (
    """\
Purchases: 23
Categories: Cookware 11, Baking 7, Storage 3, Garden 1
Brands: Tefal 9, Pyrex 4, Joseph 1
Newest: Tefal frying pan 28 cm; Pyrex glass loaf tin; Tefal saucepan with lid; \
Bread baking stone; Cake rack""",
    '{"customer": "frequent buyer, cooks and bakes at home", "interests": '
    '"frying pans, baking bread and cakes", "categories": "Cookware, Baking", '
    '"brands": "Tefal, Pyrex"}',
  ),
  (
    """\
Purchases: 2
Categories: History 2, Travel 1, War 1
Brands: unknown
Newest: The Roman Roads of Britain (1998); A Short History of Venice (2003)""",
    '{"customer": "occasional buyer, fond of history", "interests": "ancient '
    'Rome, old cities, roads", "categories": "History, Travel", "brands": '
    '"unknown"}',
  ),
)

_MAX_NAMES = 4  # categories, and brands, with the highest counts
_MAX_TITLES = 5
_MAX_CHARACTERS = 80  # of a title, and of a name
_NOTHING = ('unknown', 'none')


class Prompts(prompts.Prompts):
  """The user messages of all profiles; see `prompts.Prompts`.

  Attributes:
    num_listed: i32[rows], the purchases whose titles a message has.
  """

  @property
  def num_read(self) -> np.ndarray:
    """Purchases that a message tells of: all of a row's, i32[rows]."""
    return (self._profiles.last - self._profiles.first).astype(np.int32)

  def message(self, row: int) -> str:
    """The user message of a row."""
    events = self._profiles.newest(row, self.num_read[row])
    items = self._items[events].tolist()
    titles = [self._titles[item] for item in items[: self.num_listed[row]]]
    brands = [self._brands[item] for item in items]
    return '\n'.join(
      [
        f'{HEADER}{len(items)}',
        f'Categories: {_counted(self._paths[item] for item in items)}',
        f'Brands: {_counted([brand] if brand else [] for brand in brands)}',
        f'Newest: {"; ".join(title or "-" for title in titles)}',
      ]
    )

  def _describe(self, log: EventLog) -> None:
    """Puts items into words."""
    self._titles, self._brands = (
      [prompts.one_line(text)[:_MAX_CHARACTERS] for text in column]
      for column in (log.titles, log.brands)
    )
    self._paths = item_keywords.category_levels(map(str, log.categories))

  def _fit(self, budget: int, counter: prompts.Counter) -> np.ndarray:
    """How many titles to begin with; those that do not fit give way."""
    del budget, counter
    return np.minimum(self.num_read, _MAX_TITLES).astype(np.int32)


def parse(answer: str) -> tuple[str, ...]:
  """Reads an answer as `prompts.parse` does.

  A small model repeats itself: a phrase that it has said counts once.
  """
  return tuple(map(_distinct, prompts.parse(answer, NAMES)))


def _distinct(text: str) -> str:
  """The distinct phrases of a text, those between commas, in their order."""
  kept: dict[str, str] = {}
  for phrase in text.split(','):
    if phrase := phrase.strip(' .'):
      kept.setdefault(phrase.casefold(), phrase)
  said = next(iter(kept), '')
  return '' if said in _NOTHING else ', '.join(kept.values())


def _counted(names: Iterable[Iterable[str]]) -> str:
  """Names with their counts; of equal ones the newest first, or "unknown".

  Args:
    names: of each purchase, newest first.
  """
  counts = collections.Counter(
    name[:_MAX_CHARACTERS] for some in names for name in dict.fromkeys(some)
  )
  most = counts.most_common(_MAX_NAMES)
  return ', '.join(f'{name} {count}' for name, count in most) or _NOTHING[0]
