r"""Which wording a small model follows: facets of some windows, by rule.

    python -m experiments.prompt_study --model=smollm2 \
        --log=event_log=interactions.csv,items.csv

The same windows, a seeded sample, are written with each wording
(`facets.writer.prompt_version`), in the guided form. Rules then tell whether a
facet names categories and brands of the window's purchases, and whether it
names any that they do not have, though the catalogue has them. The page ends
with windows and their texts, for people to read.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import pathlib
import re
from typing import NamedTuple

from absl import app
from absl import flags
import ml_collections
import numpy as np

from dynllm_jax.datasets import loading
from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import item_keywords
from dynllm_jax.facets import prompts
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.facets.windows import Profiles
from dynllm_jax.progress import say
from dynllm_jax.storage import atomic
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS
from experiments import exit_status
from experiments import facet_bundle
from experiments import pages
from experiments import result_rows

_LOG = flags.DEFINE_string(
  'log', None, 'NAME=EVENTS[,ITEMS]; NAME of a file in configs/.'
)
_MIN_ITEMS = flags.DEFINE_integer(
  'min_user_items', 0, "data.min_user_items; 0 for the config file's."
)
_MODEL = flags.DEFINE_string('model', None, "The language model's folder.")
_WINDOWS = flags.DEFINE_integer('windows', 100, 'How many.')
_DAYS = flags.DEFINE_float('window_days', 90.0, 'Length of a window.')
_TOKENS = flags.DEFINE_integer('max_output_tokens', 96, 'Of an answer.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'facets.writer.')
_VERSIONS = flags.DEFINE_multi_integer(
  'version',
  [prompts.VERSION, compressed_prompts.VERSION],
  'A wording, facets.writer.prompt_version.',
)
_SHOWN = flags.DEFINE_integer('shown', 20, 'Windows that the page shows.')
_STORE = flags.DEFINE_string(
  'store', '', 'Where answers are kept; else with the prepared data.'
)
_OUT = flags.DEFINE_string('out', '', 'The page; else it is only printed.')


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


def main(argv: list[str]) -> int:
  """Writes the facets with each wording and the page."""
  del argv
  return exit_status.exit_status(_study)


def _study() -> None:
  place = result_rows.parse_log('prompts', _LOG.value)
  config = place.config('')
  config.data.events, config.data['items'] = place.events, place.items
  if _MIN_ITEMS.value:
    config.data.min_user_items = _MIN_ITEMS.value
  log = loading.load(config.data, say)
  seconds = windows.window_seconds(_DAYS.value)
  sample = facet_bundle.sampled(windows.profiles(log, seconds), _WINDOWS.value)

  folder = _STORE.value or facet_bundle.store_folder(config.data)
  texts = {}
  for version in _VERSIONS.value:
    fields = _writer(config.facets.writer, version)
    written = writing.write(fields, log, sample, folder, say)
    texts[version] = [
      [written.texts[text] if text else '' for text in row]
      for row in written.index
    ]

  page = _page(log, sample, texts)
  say(page)
  if _OUT.value:
    atomic.write_atomically(pathlib.Path(_OUT.value), page)


def _writer(
  fields: ml_collections.ConfigDict, version: int
) -> ml_collections.ConfigDict:
  """`config.facets.writer` of a wording."""
  fields = fields.copy_and_resolve_references()
  fields.name, fields.model, fields.form = 'flax', _MODEL.value, 'guided'
  fields.max_output_tokens, fields.dtype = _TOKENS.value, _DTYPE.value
  fields.prompt_version = version
  return fields


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


def _has(text: str, name: str) -> bool:
  """Whether a text has a name as whole words."""
  if len(name) < 3 or name not in (text := text.casefold()):
    return False
  return bool(re.search(rf'(?<!\w){re.escape(name)}(?!\w)', text))


def _checks(
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


def _page(
  log: EventLog, profiles: Profiles, texts: dict[int, list[list[str]]]
) -> str:
  """The page."""
  rows = []
  for version, four in texts.items():
    checks = _checks(log, profiles, four)
    for facet in FACETS:
      column = [row[FACETS.index(facet)] for row in four]
      rows.append([version, facet, *_figures(column, checks.get(facet))])
  head = [
    *('wording', 'facet', 'says something', 'distinct texts', 'words'),
    *('names what was bought', 'names what was not'),
    '"unknown" where nothing can be named',
  ]

  name = pathlib.Path(_MODEL.value).name
  shown = np.linspace(0, len(profiles) - 1, _SHOWN.value).astype(int).tolist()
  return '\n'.join(
    [
      '# Two wordings of the facet prompt',
      '',
      f'{len(profiles)} windows of {_DAYS.value:g} days, {name}, greedy, '
      f'guided form, at most {_TOKENS.value} tokens. Names: of categories for '
      '`ctg`, of brands for `brd`, of titles of three words or more for '
      '`int`.',
      '',
      *pages.table(head, rows),
      '',
      '## To read',
      '',
      *(line for row in shown for line in _window(log, profiles, texts, row)),
    ]
  )


def _figures(column: Sequence[str], checks: list[Check] | None) -> list[str]:
  """Of a facet and a wording, as the page has them."""
  known = [text for text in column if text]
  words = np.mean([len(text.split()) for text in known]) if known else 0.0
  shares = [_share(map(bool, column)), str(len(set(known))), f'{words:.1f}']
  if checks is None:
    return [*shares, '', '', '']
  return [
    *shares,
    _share(c.names for c in checks if c.can_name),
    _share(c.invents for c in checks),
    _share(not c.is_known for c in checks if not c.can_name),
  ]


def _share(values: Iterable[bool]) -> str:
  """The share of true ones, '' of none."""
  listed = list(values)
  return f'{np.mean(listed):.0%}' if listed else ''


def _window(
  log: EventLog,
  profiles: Profiles,
  texts: dict[int, list[list[str]]],
  row: int,
) -> list[str]:
  """A window's newest purchases, and what each wording made of them."""
  items = log.items[profiles.newest(row, 6)]
  total = profiles.last[row] - profiles.first[row]
  bought = '; '.join(
    f'{prompts.one_line(log.titles[item])} ({log.categories[item] or "-"}, '
    f'{log.brands[item] or "-"})'
    for item in items
  )
  return [
    f'**{total} purchases**, newest: {bought}',
    '',
    *(
      f'- {version}: '
      + ' · '.join(f'*{f}* {t or "unknown"}' for f, t in zip(FACETS, four[row]))
      for version, four in texts.items()
    ),
    '',
  ]


if __name__ == '__main__':
  flags.mark_flags_as_required(['log', 'model'])
  app.run(main)
