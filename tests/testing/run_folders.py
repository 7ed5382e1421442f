"""Run folders of systems that were not trained, in a second.

What is live does not depend on what was learned: parameters as they are before
training, and the memory before the first event, are a checkpoint like any
other.
"""

import csv

import ml_collections
import numpy as np

from dynllm_jax.runs import prepared
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.prepared import PreparedRun
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.types import EventLog
from tests.testing import variants

START = 1_600_000_000  # unix seconds of the first event


def config_of(variant: str, log: EventLog, folder) -> ml_collections.ConfigDict:
  """The tiny configuration of a variant, on a log that is written to files.

  Args:
    variant: of `variants.VARIANTS`.
    log: whose events the files have, with texts of its items.
    folder: where files and prepared data go.
  """
  events, items = folder / 'events.csv', folder / 'items.csv'
  _write(
    events,
    ('user_id', 'item_id', 'timestamp'),
    zip(log.user_ids[log.users], log.item_ids[log.items], START + log.times),
  )
  table = (log.item_ids, log.titles, log.categories, log.brands)
  _write(
    items,
    ('item_id', 'title', 'category', 'brand'),
    list(zip(*table))[1:],
  )
  config = variants.tiny_config(variant)
  config.data.update(
    {'source': 'event_log', 'events': str(events), 'dir': str(folder / 'data')}
  )
  config.data['items'] = str(items)
  config.data.min_user_items = config.data.min_item_users = 0
  config.facets.encoder.dim = 16
  config.facets.window_days = 30
  config.eval.compare = ()
  return config


def save_untrained(
  config: ml_collections.ConfigDict, workdir: str
) -> PreparedRun:
  """Writes the run folder of a system before training; the run."""
  run = prepared.prepare(config)
  state = prepared.initial_state(run)
  folder = RunFolder(workdir)
  folder.write_json('config.json', config.to_dict())
  epoch = {'epoch': 1, 'seconds': 1.0, 'events_per_s': 1.0, 'loss': 1.0}
  epoch |= {'validation_seconds': 1.0, 'validation_recall@10': 0.0}
  status = Status(
    run.identity, 'a test', 0, epochs=1, best_epoch=1, history=[epoch]
  )
  with Checkpoints(folder.path) as checkpoints:
    for kind in ('best', 'latest'):
      checkpoints.save(kind, 1, state, status.to_json())
  return run


def batches_of(plan) -> list[np.ndarray]:
  """Positions in the log of each batch of a plan."""
  batches = plan.batches
  return [
    start + np.arange(size) for start, size in zip(batches.start, batches.size)
  ]


def events_at(log: EventLog, positions) -> list[tuple[str, str, int]]:
  """Events of a prepared log, as a recommender takes them."""
  return [
    (
      str(log.user_ids[log.users[at]]),
      str(log.item_ids[log.items[at]]),
      int(log.start_time + log.times[at]),
    )
    for at in positions
  ]


def _write(path, header, rows) -> None:
  with open(path, 'w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)
