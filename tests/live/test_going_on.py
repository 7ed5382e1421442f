"""A run goes on from another one and its journal, and takes its place."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import dynllm_jax
from dynllm_jax import InputError
from dynllm_jax import Recommender
from dynllm_jax.datasets import loading
from dynllm_jax.live import going_on
from dynllm_jax.live import grown_log
from dynllm_jax.runs import command_line
from dynllm_jax.runs import prepared
from dynllm_jax.runs import stored_config
from dynllm_jax.runs import warm_start
from dynllm_jax.runs.checkpoint import Checkpoints
from dynllm_jax.runs.run_folder import RunFolder
from dynllm_jax.runs.status import Status
from tests.testing import kept_runs


@pytest.fixture(scope='module', autouse=True)
def built_once():
  with kept_runs.build_once():
    yield


@pytest.fixture(scope='module')
def old(tmp_path_factory):
  return kept_runs.make(tmp_path_factory.mktemp('old'))


def events_in(log):
  """User, item and unix time of each event of a prepared log."""
  return sorted(
    (str(log.user_ids[u]), str(log.item_ids[i]), int(log.start_time + t))
    for u, i, t in zip(log.users, log.items, log.times)
  )


def prepared_log(workdir):
  config = stored_config.get_config(workdir)
  with Checkpoints(RunFolder(workdir).path) as checkpoints:
    status = Status.from_json(checkpoints.status('best'))
  log = loading.load_prepared(config.data, status.identity['data_fingerprint'])
  return log, status


def test_a_run_goes_on_and_takes_over(old, tmp_path):
  shop = Recommender.restore(old)
  first, last = np.split(np.array(kept_runs.events(shop.newest_time)), [30])
  shop.observe(list(first))
  before, _ = prepared_log(old)

  # Training on the log and the journal.
  new = str(tmp_path / 'new')
  config = stored_config.get_config(old)
  config.train.num_epochs = 1
  config.eval.test = False
  dynllm_jax.train(config, new, init_from=old)
  log, status = prepared_log(new)
  observed = [(e['user'], e['item'], e['time']) for e in first]
  assert events_in(log) == sorted(events_in(before) + observed)
  assert status.started_from['workdir'] == old
  assert status.started_from['epoch'] == 1
  titles = dict(zip(log.item_ids, log.titles))
  assert titles['new 7'] == 'a new title 7'
  assert going_on.origin(new).position == shop.position == 1

  # It stays as it was, though the journal does not stand still.
  shop.observe(list(last[:3]))
  dynllm_jax.train(config, new, init_from=old)
  assert prepared_log(new)[0].fingerprint == log.fingerprint

  successor = shop.changeover(new)
  assert successor.position == shop.position == 2
  taken = shop.observe(list(last[3:6]), ids=['a', 'b', 'c'])
  assert (taken.events, taken.position) == (3, 3)
  assert successor.observe(list(last[3:4]), ids=['a']).repeats == 1
  successor.observe(list(last[6:9]))
  assert (successor.position, shop.position) == (4, 2)
  with successor:
    successor.snapshot()
  with Recommender.restore(new) as again:
    kept_runs.assert_equal(successor, again)
    assert again.position == 4
  for path in (pathlib.Path(new) / 'live').glob('snapshot-*'):
    path.unlink()
  with Recommender.restore(new) as again:
    kept_runs.assert_equal(successor, again)

  with pytest.raises(InputError, match='is the run folder itself'):
    dynllm_jax.train(config, old, init_from=old)


def test_parameters_are_carried_by_id(old, tmp_path):
  """Known rows are the old ones wherever they are now, new rows as drawn."""
  folder = pathlib.Path(old).parent
  lines = (folder / 'events.csv').read_text().splitlines()
  stamp = int(lines[1].rsplit(',', 1)[1])
  extra = [f'first,first,{stamp - 9}', f'u3,i4,{stamp - 8}']
  (tmp_path / 'more.csv').write_text('\n'.join([lines[0], *extra, *lines[1:]]))
  config = stored_config.get_config(old)
  config.data.events = str(tmp_path / 'more.csv')
  run = prepared.prepare(config)
  drawn = prepared.initial_state(run)
  state, origin = warm_start.start_from(run, drawn, old)
  before, _ = prepared_log(old)
  assert origin['data_fingerprint'] == before.fingerprint
  with Checkpoints(RunFolder(old).path) as checkpoints:
    arrays = checkpoints.arrays('best')

  flat = lambda tree: {
    'params.' + name: np.asarray(leaf)
    for name, leaf in kept_runs.named_leaves(tree)
  }
  drawn, carried = flat(drawn.params), flat(state.params)
  tables = {
    (ids.shape, old_ids.shape): (ids, old_ids)
    for ids, old_ids in (
      (run.log.user_ids, before.user_ids),
      (run.log.item_ids, before.item_ids),
    )
  }
  seen = 0
  for name, value in carried.items():
    shapes = value.shape[:1], arrays[name].shape[:1]
    ids, old_ids = tables.get(shapes, ((), ()))
    if not len(ids):
      np.testing.assert_array_equal(value, arrays[name], name)
      continue
    seen += 1
    rows = {str(name): row for row, name in enumerate(old_ids)}
    for row, node in enumerate(map(str, ids)):
      there = arrays[name][rows[node]] if node in rows else drawn[name][row]
      np.testing.assert_array_equal(value[row], there, f'{name} {node}')
  assert seen == 2, 'one table by user, one by item'

  config.model.dim = 4
  other = prepared.prepare(config)
  with pytest.raises(InputError, match='config.model.dim: 4 differs from 8'):
    warm_start.start_from(other, prepared.initial_state(other), old)


def test_a_run_folder_has_its_configuration(old, tmp_path):
  argv = ['main', '--mode=evaluate', f'--workdir={old}']
  added = command_line._with_stored_config(argv)[1]
  named = added.removeprefix('--config=')
  assert named == f'{stored_config.__file__}:{old}'
  command_line._check_config_file(named)
  stored = json.loads((pathlib.Path(old) / 'config.json').read_text())
  config = stored_config.get_config(old)
  assert json.loads(json.dumps(config.to_dict())) == stored
  for other in (
    ['main', '--mode=train', f'--workdir={old}'],
    [*argv, '--config=mine.py'],
  ):
    assert command_line._with_stored_config(other) == other
  with pytest.raises(InputError, match='has no config.json'):
    command_line._check_config_file(f'{stored_config.__file__}:{tmp_path}')


def test_a_log_that_has_grown_is_evaluated_and_served(old, tmp_path):
  """The run's own figures stay, and what came later is ranked and taken in."""
  without_journal = shutil.ignore_patterns('live')
  workdir = str(shutil.copytree(old, tmp_path / 'run', ignore=without_journal))
  config = stored_config.get_config(workdir)
  config.data.events = str(tmp_path / 'events.csv')
  before = dynllm_jax.evaluate(stored_config.get_config(workdir), workdir)

  lines = (pathlib.Path(old).parent / 'events.csv').read_text()
  events = kept_runs.events(kept_runs.FIRST_TIME)
  events.sort(key=lambda event: event['time'])
  added = [f'{e["user"]},{e["item"]},{e["time"]}\n' for e in events]
  (tmp_path / 'events.csv').write_text(lines + ''.join(added))
  grown = dynllm_jax.evaluate(config, workdir)
  for split in ('validation', 'test'):
    assert grown[split] == before[split]
  assert grown['new_events']['events'] == len(events)
  newcomers = {e['user'] for e in events if 'new' in e['user']}
  assert grown['new_events']['new_users'] == len(newcomers)

  RunFolder(workdir).write_json('config.json', config.to_dict())
  with Recommender.restore(workdir) as shop:
    shop.observe(events[:5])
    assert grown_log.observe_new(shop) == len(events) - 5
    assert grown_log.observe_new(shop) == 0
    assert shop.journaled() == {
      (e['user'], e['item'], e['time']) for e in events
    }

  (tmp_path / 'events.csv').write_text(lines.replace('u3,', 'u4,'))
  with pytest.raises(InputError, match='events have been added at its end'):
    dynllm_jax.evaluate(config, workdir)
