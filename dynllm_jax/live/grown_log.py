"""A run whose log has grown since its training (SPEC 10.6).

What has been added is checked to follow what the run knows, and is taken in as
if it were observed; nothing is trained.
"""

from typing import Any

import ml_collections
import numpy as np

from dynllm_jax import config as config_lib
from dynllm_jax.datasets import growth
from dynllm_jax.datasets import loading
from dynllm_jax.engine import metrics
from dynllm_jax.live.recommender import Recommender
from dynllm_jax.progress import say
from dynllm_jax.runs import modes
from dynllm_jax.runs import stored_config
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from dynllm_jax.types import EventLog
from dynllm_jax.types import InputError

_AT_ONCE = 2048  # events of the log in a batch of the journal


def evaluate_mode(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, Any]:
  """`--mode=evaluate`, also where the log has grown.

  Args:
    config: the configuration.
    workdir: the folder of a run with `--mode=train`.

  Returns:
    The content of `results.json`; for a log that has grown also `new_events`,
    the metrics of what has been added.

  Raises:
    InputError: for whatever is wrong with configuration, data or run folder.
  """
  log = _log_before(config, workdir)
  if log is None:
    return modes.evaluate_mode(config, workdir)
  new = growth.new_events(loading.read(config.data), log, workdir)
  say(f'data: {len(new.users):,} events have been added since training')
  results = modes.evaluate_mode(config, workdir, log)
  results['new_events'] = _ranked(config, workdir, new)
  RunFolder(workdir).write_json('results.json', results)
  return results


def observe_new(shop: Recommender) -> int:
  """Observes what has been added to the log of a run, each event once.

  Events that the journal has already are left out, whether they came from the
  log or were observed live.

  Args:
    shop: of the run, which may write.

  Returns:
    How many events were new. A log that is gone, or that is not the run's any
    more, is said to be so, and has none.

  Raises:
    InputError: if the journal cannot be written.
  """
  data, had = shop.config.data, shop.identity['data_fingerprint']
  try:
    if loading.fingerprint(data) == had:
      return 0
    log = loading.load_prepared(data, had)
    new = growth.new_events(loading.read(data), log, 'the run')
  except InputError as error:
    say(f'the log is not looked at for new events: {error}')
    return 0

  journaled = shop.journaled()
  events = [
    event
    for event in _events(shop, new)
    if (event['user'], event['item'], event['time']) not in journaled
  ]
  for start in range(0, len(events), _AT_ONCE):
    shop.observe(events[start : start + _AT_ONCE])
  say(f'{len(events):,} events have been added to the log since training')
  return len(events)


def _log_before(
  config: ml_collections.ConfigDict, workdir: str
) -> EventLog | None:
  """The log of a run if `config.data` names another one that may follow it.

  None where it is the same, and where fields differ by which a log is prepared:
  what differs then is not what has been added.
  """
  folder = RunFolder(workdir)
  if folder.read_json('config.json') is None:
    return None
  stored = stored_config.get_config(workdir)
  fields = [
    {
      name: value
      for name, value in config_lib.flatten(some.data.to_dict())
      if name not in loading.NO_CONTENT
    }
    for some in (config, stored)
  ]
  if fields[0] != fields[1]:
    return None

  with Checkpoints(folder.path) as checkpoints:
    if checkpoints.epoch('best') is None:
      return None
    status = Status.from_json(checkpoints.status('best'))
  had = status.identity['data_fingerprint']
  if loading.fingerprint(config.data) == had:
    return None
  return loading.load_prepared(config.data, had)


def _ranked(
  config: ml_collections.ConfigDict, workdir: str, new: growth.NewEvents
) -> dict[str, Any]:
  """Metrics of new events, each batch ranked before it is applied."""
  shop = Recommender.restore(
    workdir, journal=None, data_dir=config.data.dir or None
  )
  events = _events(shop, new)
  ranks, users, items = [np.zeros(0)], 0, 0
  size = config.eval.batch_size
  for start in range(0, len(events), size):
    observed = shop.observe(events[start : start + size], ranked=True)
    assert observed.ranks is not None
    ranks.append(observed.ranks)
    users, items = users + observed.new_users, items + observed.new_items

  found = np.concatenate(ranks)
  result: dict[str, Any] = {
    'events': len(events),
    'new_users': users,
    'new_items': items,
  }
  if len(events):
    result |= metrics.summary(found, config.eval.ks)
  named = ', '.join(f'{name} {value:.4g}' for name, value in result.items())
  say(f'new events, each ranked among all items known by then: {named}')
  return result


def _events(shop: Recommender, new: growth.NewEvents) -> list[dict[str, Any]]:
  """New events as they are observed; those that a system refuses left out."""
  events: list[dict[str, Any]] = []
  for user, item, time in zip(new.users, new.items, new.times, strict=True):
    is_known = shop.has_user(str(user)) and shop.has_item(str(item))
    if not is_known and not shop.takes_newcomers:
      continue
    event = {'user': str(user), 'item': str(item), 'time': int(time)}
    if item in new.texts:
      names = ('title', 'category', 'brand')
      event |= dict(zip(names, map(str, new.texts[item]), strict=True))
    events.append(event)
  if left_out := len(new.users) - len(events):
    say(f'{left_out:,} new events of users or items that {shop.name} lacks')
  return events
