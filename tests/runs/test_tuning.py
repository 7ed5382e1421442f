"""--mode=tune: trials on validation alone, kept, gone on with, and a winner."""

import shlex

import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.runs import modes
from dynllm_jax.runs import tuning
from dynllm_jax.types import InputError
from tests.testing import logs

SYSTEMS = ('repeat', 'mf')


def get_config(arg=''):
  config = config_lib.default(arg or 'repeat')
  config.data.min_user_items = config.data.min_item_users = 1
  config_lib.set_known(config.model, dim=4)
  config.train.num_epochs = 2
  config.eval.ks = (3,)
  return config


def write_log(path, change_test=False):
  """A log whose test events may be others, at the same times."""
  log = logs.random_log(1, num_events=120, num_times=120)
  lines = ['user_id,item_id,timestamp']
  for k in range(log.num_events):
    item = log.items[k]
    if change_test and k >= log.validation_end:
      item = 1 + item % log.num_items
    lines.append(f'{log.users[k]},{item},{log.times[k] + logs.MONDAY}')
  path.write_text('\n'.join(lines))


@pytest.fixture
def call(tmp_path):
  """`call(trials)` tunes in one folder; `call.config` may be changed."""

  def tune(trials, workdir='run', name='log.csv', **fields):
    config = get_config()
    config.data.events = str(tmp_path / name)
    config.data.dir = str(tmp_path / 'data')
    config.train.batch_size = config.eval.batch_size = 32
    config.update_from_flattened_dict(fields)
    return tuning.tune(
      config,
      str(tmp_path / workdir),
      5.0,
      get_config,
      'shop.py',
      SYSTEMS,
      max_trials=trials,
    )

  write_log(tmp_path / 'log.csv')
  return tune


def test_trials_are_kept_and_the_winner_can_be_run(
  call, tmp_path, monkeypatch, capsys
):
  first = call(1)
  assert first['trials'] == 1 and first['system'] == 'repeat'

  # A call that is cut off goes on in the folder of its trial.
  fit = modes.fit

  def cut_off(run, checkpoints, folder, go_on):
    fit(run, checkpoints, folder, go_on=lambda status: False)
    raise KeyboardInterrupt

  monkeypatch.setattr(modes, 'fit', cut_off)
  with pytest.raises(KeyboardInterrupt):
    call(1)
  monkeypatch.undo()
  folders = {path.name for path in (tmp_path / 'run' / 'trials').iterdir()}
  capsys.readouterr()
  second = call(1)
  assert second['trials'] == 2
  assert 'resuming after epoch 1' in capsys.readouterr().out
  assert folders == {
    path.name for path in (tmp_path / 'run' / 'trials').iterdir()
  }
  assert not list((tmp_path / 'run').rglob('results.json'))

  third = call(2)
  assert third['trials'] == 4 and third['value'] >= second['value']
  words = shlex.split(third['command'])
  assert f'--config=shop.py:{third["system"]}' in words
  assert '--config.train.batch_size=32' in words
  assert f'--config.data.events={tmp_path}/log.csv' in words
  for name, value in third['fields'].items():
    usual = get_config(third['system'])
    section, _, field = name.partition('.')
    if usual[section][field] != value:
      assert f'--config.{name}={value}' in words

  with pytest.raises(InputError, match='--workdir.*another log'):
    call(1, **{'eval.filter_seen': True})


def test_no_trial_sees_the_test_split(call, tmp_path):
  write_log(tmp_path / 'other.csv', change_test=True)
  values = []
  for name in ('log.csv', 'other.csv'):
    values.append(call(2, workdir=f'run of {name}', name=name)['value'])
  assert values[0] == values[1]
