"""One user's facets over time, with the purchases behind them, for people."""

from collections.abc import Callable
import datetime
import json
from typing import Any

import numpy as np

from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import windows
from dynllm_jax.storage import bucket_copy
from dynllm_jax.types import EventLog
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError


def show(
  facets_config: Any,
  log: EventLog,
  cache_dir: str,
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
  first, last = facets.offsets[numbers[0] : numbers[0] + 2].tolist()
  texts = _lines(
    folder / 'texts.jsonl', set(facets.index[first:last].ravel().tolist())
  )
  notes = _lines(folder / 'profiles.jsonl', set(range(first, last)))
  profiles = windows.profiles(
    log, windows.window_seconds(facets_config.window_days)
  )
  report(
    f'user {user}: {last - first} profiles of {about["window_days"]:g} '
    f'days; {about["writer"]}; {about["encoder"]}'
  )
  for row in range(first, last):
    report('')
    until = (
      f'until {_date(log, facets.closes[row + 1])}' if row + 1 < last else 'on'
    )
    report(f'closes {_date(log, facets.closes[row])}, serves from then {until}')
    for name, text in zip(FACETS, facets.index[row].tolist()):
      report(f'  {name}: {texts[text]["text"]}')
    events = profiles.newest(row, log.num_events)
    report(
      f'  {len(events)} purchases before it, newest first; '
      f'{notes[row]["num_read"]} read'
    )
    for event in events:
      item = log.items[event]
      parts = (log.titles[item], log.categories[item], log.brands[item])
      report(
        f'    {_date(log, log.times[event])}  item {log.item_ids[item]}: '
        f'{" | ".join(map(str, parts))}'
      )


def _lines(path: Any, wanted: set[int]) -> dict[int, Any]:
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
