"""The facet bank and the items' texts, built once and kept on disk.

    <cache_dir>/facets/<key>/     texts.npy offsets.npy closes.npy index.npy
                                  texts.jsonl profiles.jsonl about.json
    <cache_dir>/item_text/<key>/  texts.npy about.json

A folder appears whole, under its final name, or not at all (cached_arrays.py).
Beside them, `<cache_dir>/written` and `<cache_dir>/encoded` are what writers
and encoders may keep for themselves.
"""

from collections.abc import Callable
import json
import os
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

from dynllm_jax.facets import cached_arrays
from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.storage import bucket_copy
from dynllm_jax.text import encoding
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS

VERSION = 2

Report = Callable[[str], None]
Folder = str | os.PathLike[str]


def build(
  facets_config: ml_collections.ConfigDict,
  log: EventLog,
  cache_dir: Folder,
  report: Report = print,
) -> tuple[FacetBank, dict[str, Any]]:
  """Writes and encodes the facets of a log, or finds them in the cache.

  Args:
    facets_config: `config.facets`.
    log: the prepared log.
    cache_dir: where prepared data are kept.
    report: takes lines of progress.

  Returns:
    The bank (SPEC 3.6), numpy arrays mapped from disk, and what a report
    should say of it: `writer`, `encoder`, `window_days`, `num_windows`,
    `num_profiles`, `num_unique_texts`, `num_failed` (profiles that the writer
    could not write) and `failure_rate`, their share, `unknown` (share of the
    profiles, by facet), `llm_dim`, `seconds` that the build took, `folder`.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  cached = cached_arrays.load_or_make(
    folder_of(facets_config, log, cache_dir),
    ('texts', 'offsets', 'closes', 'index'),
    lambda folder: _make(facets_config, log, cache_dir, folder, report),
    report,
  )
  about = {**cached.about, 'folder': str(cached.folder)}
  longest = int(np.diff(cached.arrays['offsets']).max(initial=0))
  return FacetBank(**cached.arrays, longest=longest), about


def folder_of(
  facets_config: ml_collections.ConfigDict, log: EventLog, cache_dir: Folder
) -> pathlib.Path:
  """The folder of a log's facets, which may not be there yet.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  key = cached_arrays.key(
    VERSION,
    windows.VERSION,
    log.fingerprint,
    windows.window_seconds(facets_config.window_days),
    *identities(facets_config, cache_dir),
  )
  return pathlib.Path(cache_dir, 'facets', key)


def identities(
  facets_config: ml_collections.ConfigDict, cache_dir: Folder
) -> tuple[dict[str, Any], dict[str, Any]]:
  """What texts and embeddings depend on besides the log and the window.

  Args:
    facets_config: `config.facets`.
    cache_dir: where prepared data are kept.

  Returns:
    JSON values, of the writer and of the encoder.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  return (
    writing.identity(facets_config.writer, _written(cache_dir)),
    encoding.identity(facets_config.encoder, _encoded(cache_dir)),
  )


def plan(
  facets_config: ml_collections.ConfigDict,
  log: EventLog,
  cache_dir: Folder,
  report: Report = print,
) -> None:
  """Reports what `build` would take; spends nothing.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  folder = folder_of(facets_config, log, cache_dir)
  report(
    f'facets: {writing.describe(facets_config.writer)}; '
    f'{encoding.describe(facets_config.encoder)}'
  )

  num_texts = 0
  if bucket_copy.fetch_folder(folder):
    report(f'facets: nothing to write, all are in {folder}')
  else:
    profiles = windows.profiles(
      log, windows.window_seconds(facets_config.window_days)
    )
    writing.plan(
      facets_config.writer, log, profiles, _written(cache_dir), report
    )
    num_texts = len(FACETS) * len(profiles)

  item_folder = _item_text_folder(facets_config.encoder, log, cache_dir)
  num_items = 0 if bucket_copy.fetch_folder(item_folder) else log.num_items
  report(
    f'facets: at most {num_texts:,} facet texts and {num_items:,} item texts '
    'to embed'
  )


def item_text(
  encoder_config: ml_collections.ConfigDict,
  log: EventLog,
  cache_dir: Folder,
  report: Report = print,
) -> np.ndarray:
  """Encodes `title | category | brand` of every item; empty texts left out.

  Args:
    encoder_config: `config.facets.encoder`.
    log: the prepared log.
    cache_dir: where prepared data are kept.
    report: takes lines of progress.

  Returns:
    f16[num_items + 1, llm_dim], mapped from disk; row 0 is zeros.

  Raises:
    InputError: if a field of the config is not allowed.
  """

  def make(folder: pathlib.Path) -> dict[str, Any]:
    texts = [
      joined_text(*columns)
      for columns in zip(log.titles, log.categories, log.brands, strict=True)
    ]
    table = _encode_table(encoder_config, ['', *texts[1:]], cache_dir)
    np.save(folder / 'texts.npy', table)
    return {'encoder': encoding.describe(encoder_config)}

  folder = _item_text_folder(encoder_config, log, cache_dir)
  cached = cached_arrays.load_or_make(folder, ('texts',), make, report)
  return cached.arrays['texts']


def joined_text(title: str, category: str, brand: str) -> str:
  """`title | category | brand`, the text of an item; empty parts left out."""
  return ' | '.join(
    text for text in map(str.strip, map(str, (title, category, brand))) if text
  )


def encode_items(
  encoder_config: ml_collections.ConfigDict,
  texts: list[str],
  cache_dir: Folder,
) -> np.ndarray:
  """Encodes texts of further items, as those of the log were.

  Args:
    encoder_config: `config.facets.encoder`.
    texts: of `joined_text`; an empty one gives zeros.
    cache_dir: where prepared data are kept.

  Returns:
    f16[texts, llm_dim].
  """
  return _encode_table(encoder_config, ['', *texts], cache_dir)[1:]


def is_stored(
  facets_config: ml_collections.ConfigDict, log: EventLog, cache_dir: Folder
) -> bool:
  """Whether `build` and `item_text` have nothing to compute."""
  return all(
    bucket_copy.fetch_folder(folder)
    for folder in (
      folder_of(facets_config, log, cache_dir),
      _item_text_folder(facets_config.encoder, log, cache_dir),
    )
  )


def texts_by_row(folder: pathlib.Path, rows: set[int]) -> dict[int, str]:
  """The texts of some rows of a bank.

  Args:
    folder: of the facets, `about['folder']` of `build`.
    rows: of the bank's `texts`.
  """
  with open(folder / 'texts.jsonl', encoding='utf-8') as file:
    return {
      number: json.loads(line)['text']
      for number, line in enumerate(file)
      if number in rows
    }


def _make(
  facets_config: ml_collections.ConfigDict,
  log: EventLog,
  cache_dir: Folder,
  folder: pathlib.Path,
  report: Report,
) -> dict[str, Any]:
  """Writes and encodes the facets into an empty folder.

  Returns:
    What `build` reports of them, `folder` aside.
  """
  encoder_config, writer_config = facets_config.encoder, facets_config.writer
  start = time.monotonic()
  profiles = windows.profiles(
    log, windows.window_seconds(facets_config.window_days)
  )

  report(
    f'facets: writing {len(profiles):,} profiles, '
    f'{writing.describe(writer_config)}'
  )
  facets = writing.write(
    writer_config, log, profiles, _written(cache_dir), report
  )
  report(
    f'facets: encoding {len(facets.texts) - 1:,} texts, '
    f'{encoding.describe(encoder_config)}'
  )
  texts = _encode_table(encoder_config, ['', *facets.texts[1:]], cache_dir)

  offsets = np.searchsorted(profiles.users, np.arange(log.num_users + 2))
  np.save(folder / 'texts.npy', texts)
  np.save(folder / 'offsets.npy', offsets.astype(np.int32))
  np.save(folder / 'closes.npy', profiles.closes.astype(np.int32))
  np.save(folder / 'index.npy', facets.index)
  _write_provenance(folder, log, profiles, facets)

  unknown = (facets.index == 0).mean(axis=0) if len(profiles) else [0.0] * 4
  return {
    'writer': writing.describe(writer_config),
    'encoder': encoding.describe(encoder_config),
    'window_days': float(facets_config.window_days),
    'num_windows': len(np.unique(profiles.closes)),
    'num_profiles': len(profiles),
    'num_unique_texts': len(facets.texts) - 1,
    'num_failed': facets.num_failed,
    'failure_rate': facets.num_failed / max(len(profiles), 1),
    'unknown': dict(zip(FACETS, map(float, unknown))),
    'llm_dim': texts.shape[1],
    'seconds': time.monotonic() - start,
  }


def _item_text_folder(
  encoder_config: ml_collections.ConfigDict, log: EventLog, cache_dir: Folder
) -> pathlib.Path:
  """The folder of the items' texts, which may not be there yet."""
  key = cached_arrays.key(
    VERSION,
    log.fingerprint,
    encoding.identity(encoder_config, _encoded(cache_dir)),
  )
  return pathlib.Path(cache_dir, 'item_text', key)


def _encode_table(
  encoder_config: ml_collections.ConfigDict,
  texts: list[str],
  cache_dir: Folder,
) -> np.ndarray:
  """Encodes texts; row 0 is zeros whatever an encoder makes of ''."""
  table = encoding.encode(encoder_config, texts, _encoded(cache_dir))
  table[0] = 0
  return table


def _written(cache_dir: Folder) -> str:
  """Where writers may keep their answers."""
  return os.path.join(cache_dir, 'written')


def _encoded(cache_dir: Folder) -> str:
  """Where encoders may keep what was expensive to compute."""
  return os.path.join(cache_dir, 'encoded')


def _write_provenance(
  folder: pathlib.Path,
  log: EventLog,
  profiles: windows.Profiles,
  facets: writing.FacetTexts,
) -> None:
  """Writes for people every text, and which purchases each profile could read.

  A line of `texts.jsonl` is a row of the bank's `texts`. A line of
  `profiles.jsonl` names a user and the window's close, how many purchases the
  window has, how many of them, the newest, were read, the times of its first
  and last purchase (seconds of the log's timeline) and the texts' rows.
  """
  with open(folder / 'texts.jsonl', 'w', encoding='utf-8') as file:
    file.writelines(
      json.dumps({'row': row, 'text': text}, ensure_ascii=False) + '\n'
      for row, text in enumerate(facets.texts)
    )

  times = log.times[profiles.order]
  columns = {
    'user': log.user_ids[profiles.users],
    'close': profiles.closes,
    'num_purchases': profiles.last - profiles.first,
    'num_read': facets.num_read,
    'first_time': times[profiles.first],
    'last_time': times[profiles.last - 1],
    'texts': facets.index,
  }
  rows = zip(*(column.tolist() for column in columns.values()))
  with open(folder / 'profiles.jsonl', 'w', encoding='utf-8') as file:
    file.writelines(
      json.dumps(dict(zip(columns, row)), ensure_ascii=False) + '\n'
      for row in rows
    )
