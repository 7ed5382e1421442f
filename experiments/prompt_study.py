r"""Which wording a small model follows: facets of some windows, by rule.

    python -m experiments.prompt_study --model=smollm2 \
        --log=event_log=interactions.csv,items.csv

The same windows, a seeded sample, are written with each wording
(`facets.writer.prompt_version`), in the guided form. Rules then tell whether a
facet names categories and brands of the window's purchases, whether it names
any that they do not have, though the catalogue has them, and whether it repeats
the instructions or their examples. The page ends with windows and their texts,
for people to read; what they say of them is added by hand.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import pathlib

from absl import app
from absl import flags
import ml_collections
import numpy as np

from dynllm_jax.datasets import loading
from dynllm_jax.facets import compressed_prompts
from dynllm_jax.facets import language_model
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
from experiments import facet_rules
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
  texts, told = {}, {}
  for version in _VERSIONS.value:
    fields = _writer(config.facets.writer, version)
    turns = language_model.messages(fields, '')
    told[version] = '\n'.join(turn['content'] for turn in turns)
    written = writing.write(fields, log, sample, folder, say)
    texts[version] = [
      [written.texts[text] if text else '' for text in row]
      for row in written.index
    ]

  page = _page(log, sample, texts, told)
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


def _page(
  log: EventLog,
  profiles: Profiles,
  texts: dict[int, list[list[str]]],
  told: dict[int, str],
) -> str:
  """The page.

  Args:
    log: the prepared log.
    profiles: the windows.
    texts: by wording, the four texts of each window.
    told: by wording, what all prompts have.
  """
  rows = []
  for version, four in texts.items():
    checks = facet_rules.checks(log, profiles, four)
    for facet in FACETS:
      column = [row[FACETS.index(facet)] for row in four]
      echoes = _share(
        facet_rules.repeats(text, told[version]) for text in column
      )
      figures = _figures(column, checks.get(facet))
      rows.append([version, facet, *figures, echoes])
  head = [
    *('wording', 'facet', 'says something', 'distinct texts', 'words'),
    *('names what was bought', 'names what was not'),
    *('"unknown" where nothing can be named', 'repeats the prompt'),
  ]

  name = pathlib.Path(_MODEL.value).name
  shown = np.linspace(0, len(profiles) - 1, _SHOWN.value).astype(int).tolist()
  return '\n'.join(
    [
      '# Two wordings of the facet prompt',
      '',
      f'{len(profiles)} windows of {_DAYS.value:g} days of a log of '
      f'{len(log.times):,} events, {name}, greedy, guided form, at most '
      f'{_TOKENS.value} tokens. Names: of categories for `ctg`, of brands for '
      '`brd`, of titles of three words or more for `int`. What repeats the '
      'prompt has a phrase of two words or more of its instructions or its '
      'examples.',
      '',
      *pages.table(head, rows),
      '',
      'Windows in which two facets say the same: '
      + ', '.join(
        f'{_share(map(facet_rules.says_twice, four))} with wording {version}'
        for version, four in texts.items()
      )
      + '.',
      '',
      '## To read',
      '',
      *(line for row in shown for line in _window(log, profiles, texts, row)),
    ]
  )


def _figures(
  column: Sequence[str], checks: list[facet_rules.Check] | None
) -> list[str]:
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
