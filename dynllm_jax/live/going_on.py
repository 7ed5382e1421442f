"""Training that goes on from a run and from what was observed since.

The events of the run's journal, as they stand when training first starts,
become a file of the new run folder, which the new configuration names: so the
new run is what it is, whatever the journal holds later. The folder also
remembers the journal's position. A recommender that serves the new run applies
the batches after it.

    RUN/live/journal.sqlite    the journal, unless it is elsewhere
    RUN/live/events.parquet    events observed live, part of the run's log
    RUN/live/origin.json       the journal that they are from, and its position
"""

import pathlib
from typing import Any

import ml_collections

from dynllm_jax.datasets import live_events
from dynllm_jax.live.journal import Journal
from dynllm_jax.live.journal import Tip
from dynllm_jax.live.journaling import entries
from dynllm_jax.progress import say
from dynllm_jax.runs import modes
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.storage import bucket
from dynllm_jax.storage.store import digest
from dynllm_jax.types import InputError

FOLDER = 'live'  # of a run folder
_JOURNAL, _EVENTS, _ORIGIN = 'journal.sqlite', 'events.parquet', 'origin.json'


def journal_name(identity: dict[str, Any]) -> str:
  """The name by which a journal knows the runs that it may serve.

  Its batches are about the users and items of a log, and have embeddings of
  texts; so runs of other systems on the same log may share it.

  Args:
    identity: of the run's checkpoints (runs/identity.py).
  """
  encoder = identity['facets']['encoder']
  return digest(identity['data_fingerprint'], encoder).hex()


def journal_place(workdir: str) -> str:
  """Where the journal of a run is, if nobody says otherwise.

  Raises:
    InputError: if the folder is in a bucket, where SQLite cannot write.
  """
  place = _origin(workdir).get('journal')
  return str(place or live_folder(workdir) / _JOURNAL)


def origin(workdir: str) -> Tip | None:
  """The last batch of the journal that a run's log has; None for none."""
  record = _origin(workdir)
  if not record:
    return None
  return Tip(record['position'], bytes.fromhex(record['digest']))


def train_mode(
  config: ml_collections.ConfigDict,
  workdir: str,
  init_from: str,
  journal: str = '',
) -> dict[str, Any]:
  """`--mode=train --init_from=RUN`: trains on the log and on the journal.

  Args:
    config: the configuration, whose log is that of the earlier run, or one that
      begins with it.
    workdir: the new run folder; if it holds such a run, that run goes on.
    init_from: the earlier run's folder.
    journal: its journal, a file or a URL; '' for the one in its folder.

  Returns:
    The content of `results.json`.

  Raises:
    InputError: for whatever is wrong with configuration, folders or journal.
  """
  folder = live_folder(workdir)
  if folder.parent.resolve() == pathlib.Path(init_from).resolve():
    raise InputError(
      f'--init_from: {init_from!r} is the run folder itself; allowed: a new '
      '--workdir'
    )
  if not _origin(workdir):
    _take_events(folder, init_from, journal)
  if (folder / _EVENTS).exists():
    config.data.journal = str(folder / _EVENTS)
  return modes.train_mode(config, workdir, init_from)


def live_folder(workdir: str) -> pathlib.Path:
  """The folder of a run's journal and snapshots.

  Raises:
    InputError: if it is in a bucket.
  """
  path = RunFolder(workdir).path
  if bucket.is_url(path):
    raise InputError(
      f'--workdir: {workdir!r} is in a bucket, where no journal can be; '
      'allowed: a folder on a disk'
    )
  return pathlib.Path(path) / FOLDER


def _take_events(folder: pathlib.Path, init_from: str, place: str) -> None:
  """Copies the events of a run's journal, if there are any."""
  default = journal_place(init_from)
  if not place and '://' not in default and not pathlib.Path(default).exists():
    say(f'{init_from} has no journal; training starts from its parameters')
    return

  with Checkpoints(RunFolder(init_from).path) as checkpoints:
    status = Status.from_json(checkpoints.status('best'))
  users: list[str] = []
  items: list[str] = []
  times: list[int] = []
  texts: dict[str, tuple[str, str, str]] = {}
  with Journal(place or default) as journal:
    journal.covers(journal_name(status.identity))
    last = journal.start
    for last, batch in entries(journal, journal.start):  # noqa: B007 (its last)
      users += batch.users
      items += batch.items
      times += batch.times
      texts |= {text.item: text[1:4] for text in batch.texts}

    try:
      live_events.write(
        folder / _EVENTS, live_events.LiveEvents(users, items, times, texts)
      )
    except OSError as error:
      raise InputError(
        f'--workdir: {folder} cannot be written ({error}); allowed: a folder '
        'that can be, on a disk with room'
      ) from error
    RunFolder(str(folder)).write_json(
      _ORIGIN,
      {
        'journal': str(journal.place),
        'position': last.position,
        'digest': last.digest.hex(),
        'init_from': init_from,
      },
    )
  say(f'{len(users):,} events of {journal.place}, up to batch {last.position}')


def _origin(workdir: str) -> dict[str, Any]:
  """The content of `origin.json`; empty where the run began anew."""
  return RunFolder(str(live_folder(workdir))).read_json(_ORIGIN) or {}
