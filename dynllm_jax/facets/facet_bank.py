"""The facet bank and the items' texts, built once and kept on disk.

    <cache_dir>/facets/<key>/     texts.npy offsets.npy closes.npy index.npy
                                  texts.jsonl profiles.jsonl about.json
    <cache_dir>/item_text/<key>/  texts.npy about.json

A folder appears whole, under its final name, or not at all; `sums.json` in it
says how long each file is and its check sum, so that damage is found.
"""

from collections.abc import Callable
import hashlib
import json
import os
import pathlib
import time
from typing import Any
import zlib

import numpy as np

from dynllm_jax.facets import windows
from dynllm_jax.facets import writing
from dynllm_jax.storage import bucket_copy
from dynllm_jax.storage import build_folder
from dynllm_jax.text import encoding
from dynllm_jax.types import EventLog
from dynllm_jax.types import FacetBank
from dynllm_jax.types import FACETS

VERSION = 2

_ABOUT = 'about.json'
_SUMS = 'sums.json'
Report = Callable[[str], None]


def build(
  facets_config: Any, log: EventLog, cache_dir: str, report: Report = print
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
  window = windows.window_seconds(facets_config.window_days)
  encoder_config, writer_config = facets_config.encoder, facets_config.writer

  def make(folder: pathlib.Path) -> dict[str, Any]:
    start = time.monotonic()
    profiles = windows.profiles(log, window)
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
    np.save(folder / 'texts.npy', texts)
    np.save(
      folder / 'offsets.npy',
      np.searchsorted(profiles.users, np.arange(log.num_users + 2)).astype(
        np.int32
      ),
    )
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

  arrays, about, folder = _cached(
    folder_of(facets_config, log, cache_dir),
    ('texts', 'offsets', 'closes', 'index'),
    make,
    report,
  )
  return FacetBank(**arrays), {**about, 'folder': str(folder)}


def folder_of(
  facets_config: Any, log: EventLog, cache_dir: str
) -> pathlib.Path:
  """The folder of a log's facets, which may not be there yet.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  return pathlib.Path(
    cache_dir,
    'facets',
    _key(
      VERSION,
      windows.VERSION,
      log.fingerprint,
      windows.window_seconds(facets_config.window_days),
      *identities(facets_config, cache_dir),
    ),
  )


def identities(
  facets_config: Any, cache_dir: str
) -> tuple[dict[str, Any], ...]:
  """What texts and embeddings follow from but log and window, as JSON values.

  Args:
    facets_config: `config.facets`.
    cache_dir: where prepared data are kept.

  Returns:
    Of the writer, and of the encoder.

  Raises:
    InputError: if a field of the config is not allowed.
  """
  return (
    writing.identity(facets_config.writer, _written(cache_dir)),
    encoding.identity(facets_config.encoder, _store(cache_dir)),
  )


def plan(
  facets_config: Any, log: EventLog, cache_dir: str, report: Report = print
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
  texts = 0
  if bucket_copy.fetch_folder(folder):
    report(f'facets: nothing to write, all are in {folder}')
  else:
    profiles = windows.profiles(
      log, windows.window_seconds(facets_config.window_days)
    )
    writing.plan(
      facets_config.writer, log, profiles, _written(cache_dir), report
    )
    texts = len(FACETS) * len(profiles)
  items = log.num_items * (
    not bucket_copy.fetch_folder(
      _item_text_folder(facets_config.encoder, log, cache_dir)
    )
  )
  report(
    f'facets: at most {texts:,} facet texts and {items:,} item texts to embed'
  )


def _written(cache_dir: str) -> str:
  """Where writers keep their answers."""
  return os.path.join(cache_dir, 'written')


def item_text(
  encoder_config: Any, log: EventLog, cache_dir: str, report: Report = print
) -> np.ndarray:
  """Encodes `title | category | brand` of every item; empty parts left out.

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
      ' | '.join(part for part in map(str.strip, map(str, parts)) if part)
      for parts in zip(log.titles, log.categories, log.brands, strict=True)
    ]
    np.save(
      folder / 'texts.npy',
      _encode_table(encoder_config, ['', *texts[1:]], cache_dir),
    )
    return {'encoder': encoding.describe(encoder_config)}

  arrays, _, _ = _cached(
    _item_text_folder(encoder_config, log, cache_dir), ('texts',), make, report
  )
  return arrays['texts']


def _item_text_folder(
  encoder_config: Any, log: EventLog, cache_dir: str
) -> pathlib.Path:
  """The folder of the items' texts, which may not be there yet."""
  return pathlib.Path(
    cache_dir,
    'item_text',
    _key(
      VERSION,
      log.fingerprint,
      encoding.identity(encoder_config, _store(cache_dir)),
    ),
  )


def _encode_table(
  encoder_config: Any, texts: list[str], cache_dir: str
) -> np.ndarray:
  """Encodes texts; row 0 is zeros whatever an encoder makes of ''."""
  table = encoding.encode(encoder_config, texts, _store(cache_dir))
  table[0] = 0
  return table


def _store(cache_dir: str) -> str:
  """Where encoders keep what was dear to compute."""
  return os.path.join(cache_dir, 'encoded')


def _write_provenance(
  folder: pathlib.Path,
  log: EventLog,
  profiles: windows.Profiles,
  facets: writing.FacetTexts,
) -> None:
  """For people: every text, and which purchases each profile could read.

  A line of `texts.jsonl` is a row of the bank's `texts`. A line of
  `profiles.jsonl` names a user, the window's close, how many purchases it has
  and how many of them, the newest, were read, the first and last time of them
  all (seconds of the log's timeline) and the texts' rows.
  """
  with open(folder / 'texts.jsonl', 'w', encoding='utf-8') as file:
    file.writelines(
      json.dumps({'row': row, 'text': text}, ensure_ascii=False) + '\n'
      for row, text in enumerate(facets.texts)
    )
  times = log.times[profiles.order]
  columns = zip(
    log.user_ids[profiles.users].tolist(),
    profiles.closes.tolist(),
    (profiles.last - profiles.first).tolist(),
    facets.num_read.tolist(),
    times[profiles.first].tolist(),
    times[profiles.last - 1].tolist(),
    facets.index.tolist(),
  )
  names = (
    'user',
    'close',
    'num_purchases',
    'num_read',
    'first_time',
    'last_time',
    'texts',
  )
  with open(folder / 'profiles.jsonl', 'w', encoding='utf-8') as file:
    file.writelines(
      json.dumps(dict(zip(names, row)), ensure_ascii=False) + '\n'
      for row in columns
    )


# --------------------------------------------------------- folders on disk


def _key(*parts: Any) -> str:
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def _cached(
  folder: pathlib.Path,
  names: tuple[str, ...],
  make: Callable[[pathlib.Path], dict[str, Any]],
  report: Report,
) -> tuple[dict[str, np.ndarray], dict[str, Any], pathlib.Path]:
  """Loads a folder; makes it first where it is missing or damaged.

  Args:
    folder: its final place.
    names: the arrays to load.
    make: writes the files into an empty folder and returns what to remember.
    report: takes a line if the folder is damaged.

  Returns:
    The arrays by name, what `make` returned, and the folder.
  """
  if bucket_copy.fetch_folder(folder):
    damage = _damage(folder)
    if not damage:
      return *_load(folder, names), folder
    report(f'{folder}: {damage}; building it again')
    build_folder.remove(folder)
  with build_folder.new_folder(folder.parent) as fresh:
    (fresh / _ABOUT).write_text(json.dumps(make(fresh), indent=1))
    sums = {path.name: _sum(path) for path in sorted(fresh.iterdir())}
    (fresh / _SUMS).write_text(json.dumps(sums, indent=1))
    # Loaded before it is moved: what is mapped stays readable, whichever of
    # two processes comes first and whatever another one does to the folder.
    loaded = _load(fresh, names)
    build_folder.move_into_place(fresh, folder)
  bucket_copy.publish_folder(folder)
  return *loaded, folder


def _load(
  folder: pathlib.Path, names: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  about = json.loads((folder / _ABOUT).read_text())
  return {n: np.load(folder / f'{n}.npy', mmap_mode='r') for n in names}, about


def _damage(folder: pathlib.Path) -> str:
  """What is wrong with a folder, '' if nothing."""
  try:
    for name, expected in json.loads((folder / _SUMS).read_text()).items():
      if _sum(folder / name) != expected:
        return f'{name} is not as it was written'
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    return f'{type(error).__name__}: {error}'
  return ''


def _sum(path: pathlib.Path) -> list[int]:
  """Length and check sum of a file."""
  length = checksum = 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 20):
      length += len(block)
      checksum = zlib.crc32(block, checksum)
  return [length, checksum]
