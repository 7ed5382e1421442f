"""What the texts of facets say, by rule: the rules of prompt_study."""

from collections.abc import Iterable
from collections.abc import Sequence
import re
from typing import NamedTuple

from dynllm_jax.facets import item_keywords
from dynllm_jax.facets import prompts
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS


class Names(NamedTuple):
  """Names that texts may have.

  Attributes:
    of_item: those of each item; row 0 is padding.
    all: those of the catalogue.
  """

  of_item: list[frozenset[str]]
  all: frozenset[str]

  @classmethod
  def of(cls, names: Iterable[Iterable[str]]) -> 'Names':
    """Makes it from each item's names as they stand."""
    of_item = [frozenset(name.casefold() for name in some) for some in names]
    return cls(of_item, frozenset().union(*of_item))


class Check(NamedTuple):
  """What a text says, by rule.

  Attributes:
    is_known: whether it says anything.
    can_name: whether the purchases have a name.
    names: whether it has a name of the purchases.
    invents: whether it has a name of the catalogue that they do not have.
  """

  is_known: bool
  can_name: bool
  names: bool
  invents: bool


def check(text: str, own: frozenset[str], catalogue: frozenset[str]) -> Check:
  """What a text says of categories or of brands.

  Args:
    text: '' for "unknown".
    own: names that the purchases have, in small letters.
    catalogue: all names.
  """
  said = {name for name in catalogue if _has(text, name)}
  # "Drama" is no invention where "Drama Queen" was bought.
  within = ' '.join(own)
  invented = {name for name in said - own if not _has(within, name)}
  return Check(bool(text), bool(own), bool(said & own), bool(invented))


def repeats(text: str, told: str) -> bool:
  """Whether a phrase of a text, of two words or more, is one of the prompt's.

  Args:
    text: phrases between commas.
    told: what all prompts have: the instructions and the examples.
  """
  phrases = (phrase.strip(' .').casefold() for phrase in text.split(','))
  return any(_has(told, phrase) for phrase in phrases if ' ' in phrase)


def _has(text: str, name: str) -> bool:
  """Whether a text has a name as whole words."""
  if len(name) < 3 or name not in (text := text.casefold()):
    return False
  return bool(re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text))


def checks(
  log: EventLog, profiles: Profiles, texts: list[list[str]]
) -> dict[str, list[Check]]:
  """By facet, what the texts of each window say by rule."""
  levels = item_keywords.category_levels(map(str, log.categories))
  brands = [[prompts.one_line(brand)] for brand in log.brands]
  titles = [[_title(title)] for title in log.titles]
  kinds = {
    'ctg': Names.of(levels),
    'brd': Names.of(names if names[0] else [] for names in brands),
    'int': Names.of(names if names[0] else [] for names in titles),
  }

  found: dict[str, list[Check]] = {}
  for facet, names in kinds.items():
    column = FACETS.index(facet)
    for row, four in enumerate(texts):
      events = profiles.newest(row, len(profiles.order))
      own = frozenset().union(
        *(names.of_item[item] for item in log.items[events])
      )
      found.setdefault(facet, []).append(check(four[column], own, names.all))
  return found


def _title(title: str) -> str:
  """A title without the year behind it; '' if it is a word or two of any text.

  Short titles are words that everybody uses.
  """
  name = re.sub(r'\s*\(\d{4}\)$', '', prompts.one_line(title))
  return name if len(name.split()) > 2 else ''


def says_twice(four: Sequence[str]) -> bool:
  """Whether two facets of a window have one text."""
  known = [text.casefold() for text in four if text]
  return len(set(known)) < len(known)
