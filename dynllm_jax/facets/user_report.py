"""A report, for people, of one user's facets and the purchases behind them."""

from collections.abc import Callable
import datetime
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import windows
from dynllm_jax.storage import bucket_copy
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError


def show(
  facets_config: ml_collections.ConfigDict,
  log: EventLog,
  cache_dir: facet_bank.Folder,
  user: str,
  report: Callable[[str], None] = print,
) -> None:
  """Prints every profile of a user: its close, four texts, its purchases.

  Args:
    facets_config: `config.facets`.
    log: the prepared log.
    cache_dir: where prepared data are kept.
    user: the id, as in the event log.
    report: takes the lines.

  Raises:
    InputError: if there is no such user, or the facets are not written yet.
  """
  numbers = np.flatnonzero(log.user_ids[1:] == user) + 1
  if not len(numbers):
    raise InputError(
      f'--user: {user!r} is not in the prepared log; allowed: one of its '
      f'{log.num_users:,} users, such as {", ".join(log.user_ids[1:4])}'
    )

  folder = facet_bank.folder_of(facets_config, log, cache_dir)
  if not bucket_copy.fetch_folder(folder):
    raise InputError(
      f'--user: the facets of this log are not there yet ({folder}); write '
      'them first, with --mode=facets and no --user'
    )

  facets, about = facet_bank.build(facets_config, log, cache_dir, report)
  first, last = np.asarray(facets.offsets)[numbers[0] : numbers[0] + 2].tolist()
  index = np.asarray(facets.index)[first:last].tolist()
  closes = np.asarray(facets.closes)[first:last].tolist()
  texts = _lines(
    folder / 'texts.jsonl', {row for four in index for row in four}
  )
  notes = _lines(folder / 'profiles.jsonl', set(range(first, last)))
  profiles = windows.profiles(
    log, windows.window_seconds(facets_config.window_days)
  )
  report(
    f'user {user}: {last - first} profiles of {about["window_days"]:g} '
    f'days; {about["writer"]}; {about["encoder"]}'
  )
  untils = [f'until {_date(log, close)}' for close in closes[1:]] + ['on']
  for row, close, until, four in zip(range(first, last), closes, untils, index):
    report('')
    report(f'closes {_date(log, close)}, serves from then {until}')
    for name, text in zip(FACETS, four):
      report(f'  {name}: {texts[text]["text"]}')
    _report_purchases(
      log,
      profiles.newest(row, log.num_events),
      notes[row]['num_read'],
      report,
    )


def _report_purchases(
  log: EventLog,
  events: np.ndarray,
  num_read: int,
  report: Callable[[str], None],
) -> None:
  """Prints the purchases of a profile, i64[purchases], newest first."""
  report(f'  {len(events)} purchases before it, newest first; {num_read} read')
  for event in events:
    item = log.items[event]
    texts = (log.titles[item], log.categories[item], log.brands[item])
    report(
      f'    {_date(log, log.times[event])}  item {log.item_ids[item]}: '
      f'{" | ".join(map(str, texts))}'
    )


def _lines(path: pathlib.Path, wanted: set[int]) -> dict[int, Any]:
  """Some lines of a JSON lines file, by number."""
  with open(path, encoding='utf-8') as file:
    return {
      number: json.loads(line)
      for number, line in enumerate(file)
      if number in wanted
    }


def _date(log: EventLog, seconds: int) -> str:
  """Date and time, UTC, of a time of the log."""
  when = datetime.datetime.fromtimestamp(
    int(log.start_time) + int(seconds), datetime.UTC
  )
  return f'{when:%Y-%m-%d %H:%M}'
