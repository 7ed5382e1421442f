"""Whole runs through the command, at tiny width on a simulated log."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dynllm_jax.runs import run_folder
from tests.testing import ROOT

pytestmark = pytest.mark.slow

TINY = [
  f'--config.{field}'
  for field in (
    'model.dim=8',
    'model.time_dim=6',
    'model.num_neighbors=3',
    'model.distill.top_r=5',
    'facets.encoder.dim=16',
    'train.num_negatives=8',
    'eval.ks=(5,10)',
  )
]


def command(*args, cwd, expect=0):
  """Runs the command as a user would; returns its output."""
  environment = {
    **os.environ,
    'XDG_CACHE_HOME': str(cwd / 'cache'),
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run(
    [sys.executable, '-m', 'dynllm_jax.main', *args],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == expect, done.stderr[-3000:]
  return done


def train(cwd, workdir, *args, config='demo', expect=0):
  return command(
    f'--config={ROOT}/configs/{config}.py',
    f'--workdir={workdir}',
    *TINY,
    *args,
    cwd=cwd,
    expect=expect,
  )


def read(folder, name='results.json'):
  return json.loads((folder / name).read_text())


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with one finished run of two epochs, `whole`."""
  folder = tmp_path_factory.mktemp('runs')
  train(folder, 'whole', '--config.train.num_epochs=2')
  return folder


def test_a_run_leaves_its_report(home):
  folder = home / 'whole'
  results = read(folder)
  for split in ('validation', 'test'):
    figures = results[split]
    assert figures['events'] == 1350
    assert 0 < figures['recall@5'] <= figures['recall@10'] <= 1
    assert 0 < figures['ndcg@10'] <= figures['recall@10']
    parts = figures['groups']
    assert parts['head']['events'] + parts['tail']['events'] == 1350
  assert set(results['floors']) == {
    'popularity',
    'recent_popularity',
    'repeat',
    'transitions',
    'itemknn',
  }
  assert results['system'] == 'dynllm+text'
  assert results['data']['simulated'] is True
  assert 'simulated' in results['data']['source']
  assert 'rule-written' in results['facets']['writer']
  assert results['epochs'] == 2
  assert results['train_events_per_s'] > 0
  assert results['train_step_flops'] > 0
  assert results['mesh'] == {'data': 1, 'nodes': 1}
  assert results['bytes_per_device']['memory.user.state'] == 301 * 8 * 4
  assert (folder / 'checkpoints' / 'latest' / '2').is_dir()
  assert len(list((folder / 'checkpoints' / 'best').iterdir())) == 1
  with np.load(folder / 'ranks.npz') as ranks:
    assert np.mean(ranks['test'] <= 10) == results['test']['recall@10']
    assert len(ranks['validation']) == 1350
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == [1, 2]
  assert list((folder / 'tensorboard').glob('events.*'))
  assert read(folder, 'config.json')['model']['dim'] == 8


def test_evaluate_gives_the_same_figures(home):
  """Also from a folder that was moved."""
  shutil.copytree(home / 'whole', home / 'moved')
  trained = read(home / 'moved')
  (home / 'moved' / 'results.json').unlink()
  done = train(home, 'moved', '--mode=evaluate', '--config.seed=5')
  again = read(home / 'moved')
  assert again.keys() == trained.keys()
  for key in (
    'validation',
    'test',
    'floors',
    'best_epoch',
    'parameters',
    'seed',
  ):
    assert again[key] == trained[key], key
  assert 'dynllm+text' in done.stdout and 'simulated' in done.stdout


def test_a_tuning_run_looks_at_no_test_event(home):
  train(
    home,
    'tuned',
    '--config.train.num_epochs=1',
    '--config.eval.test=False',
    '--config.eval.validation_events=100',
    '--config.eval.compare=()',
  )
  assert not (home / 'tuned' / 'results.json').exists()
  record = json.loads((home / 'tuned' / 'metrics.jsonl').read_text())
  assert 100 <= record['validation_events'] < 100 + 256


def test_a_resumed_run_equals_an_uninterrupted_one(home):
  train(home, 'parts', '--config.train.num_epochs=1')
  train(home, 'parts', '--config.train.num_epochs=2')
  whole, parts = read(home / 'whole'), read(home / 'parts')
  for key in ('validation', 'test', 'best_epoch', 'epochs'):
    assert whole[key] == parts[key], key
  timeless = lambda record: {
    k: v for k, v in record.items() if not k.endswith(('seconds', '_per_s'))
  }
  histories = [
    [
      timeless(json.loads(line))
      for line in (home / name / 'metrics.jsonl').read_text().splitlines()
    ]
    for name in ('whole', 'parts')
  ]
  assert histories[0] == histories[1]


def test_a_run_killed_between_its_two_saves_loses_nothing(home):
  """The best epoch is saved first; figures at other cut-offs follow from it."""
  args = ['--config.train.num_epochs=1', '--config.eval.compare=("repeat",)']
  train(home, 'killed', *args)
  folder, before = home / 'killed', read(home / 'killed')
  for name in ('checkpoints/latest', 'tensorboard'):
    shutil.rmtree(folder / name)
  for name in ('results.json', 'metrics.jsonl'):
    (folder / name).unlink()
  done = train(home, 'killed', *args, '--config.eval.ks=(5,20)')
  assert 'resuming after epoch 1' in done.stdout
  assert 'epoch 1: ' not in done.stdout
  after = read(folder)
  for old, new in (
    (before, after),
    (before['floors']['repeat'], after['floors']['repeat']),
  ):
    assert old['test']['recall@5'] == new['test']['recall@5']
    assert 'recall@20' in new['test'] and 'recall@20' not in old['test']
  assert read(folder, 'metrics.jsonl')['epoch'] == 1
  assert len(list((folder / 'tensorboard').iterdir())) == 1
  train(
    home,
    'killed',
    '--config.train.num_epochs=2',
    *args[1:],
    '--config.eval.ks=(5,20)',
  )
  assert read(folder)['epochs'] == 2


def test_two_runs_in_one_folder_are_refused(home):
  before = read(home / 'whole')
  with run_folder.RunFolder(str(home / 'whole')).held():
    for mode in ('train', 'evaluate'):
      message = one_error(train(home, 'whole', f'--mode={mode}', expect=2))
      assert message.startswith("--workdir: 'whole' is in use")
  assert read(home / 'whole') == before


def test_another_configuration_is_refused(home):
  before = read(home / 'whole')
  for mode in ('train', 'evaluate'):
    done = train(
      home,
      'whole',
      '--config.model.projection=linear',
      f'--mode={mode}',
      expect=2,
    )
    assert one_error(done) == (
      "config.model.projection: 'linear' differs from 'interval' of the "
      'checkpoint in whole; allowed: the same, or another --workdir'
    )
  assert read(home / 'whole') == before


def one_error(done):
  """The text of the single error line that must end stderr."""
  assert 'Traceback' not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ')
  return last.removeprefix('error: ')


@pytest.mark.parametrize(
  'args, words',
  [
    (['--config.model.dimm=8'], ['dimm', 'allowed']),
    (['--config.eval.ks=(401,)'], ['config.eval.ks', '401', '400']),
    (['--config.model.distill.top_r=9'], ['top_r', '9', 'r <= d']),
    (['--config.eval.ks=(5,"ten")'], ['config.eval.ks', "'ten'", '400']),
    (['--config.model.name=gcn'], ['config.model.name', 'gcn', '--config=']),
    (
      ['--config.facets.encoder.name=kept'],
      ['config.facets.encoder.name', 'kept', 'flax, hashing, openai'],
    ),
    (
      ['--config.facets.writer.name=asking'],
      ['config.facets.writer.name', 'asking', 'flax, openai, rules'],
    ),
    (['--config.data.where=buy'], ['config.data.where', "'buy'", 'mapping']),
    (['--mode=trian'], ['trian', 'train', 'evaluate', 'facets']),
    (
      ['--config.data.source=nowhere'],
      ['config.data.source', 'nowhere', 'allowed'],
    ),
    (['--config.eval.batch_size=0'], ['config.eval.batch_size', '0']),
    (['--config.eval.compare=("dynllm",)'], ['config.eval.compare', 'dynllm']),
    (['--config.train.loss=hinge'], ['config.train.loss', 'hinge', 'bpr']),
    (
      [
        '--config.mesh.data=3',
        '--config.train.batch_size=3',
        '--config.eval.batch_size=3',
      ],
      ['config.mesh', '3 x 1', '1 cpu'],
    ),
    (
      ['--config.data.source=event_log', '--config.data.events=none.csv'],
      ['none.csv'],
    ),
    (['--mode=evaluate'], ['has no checkpoint']),
    (['--dry_run'], ['--dry_run', '--mode=facets', '--mode=train']),
    (['--mode=facets', '--user=nobody'], ['--user', 'nobody', '300 users']),
    (
      ['--mode=facets', '--config.facets.writer.name=flax'],
      ['config.facets.writer.model', 'name of a model'],
    ),
  ],
)
def test_bad_input_is_one_error_and_leaves_nothing(home, args, words):
  done = train(home, 'bad', *args, expect=2)
  message = one_error(done)
  for word in words:
    assert word in message
  assert not (home / 'bad').exists()


def test_a_bad_row_is_named_and_leaves_nothing(home):
  rows = ['user_id,item_id,timestamp', 'a,x,1600000000', 'a,y,soon']
  (home / 'log.csv').write_text('\n'.join(rows) + '\n')
  done = train(
    home, 'bad', '--config.data.events=log.csv', config='event_log', expect=2
  )
  message = one_error(done)
  for word in ('log.csv', 'row 2', 'timestamp', 'soon'):
    assert word in message
  assert not (home / 'bad').exists()


@pytest.mark.parametrize(
  'text, words',
  [
    (None, ['is no file']),
    ('def get_config(', ['SyntaxError', 'line 1']),
    ('import nowhere', ['ModuleNotFoundError', 'nowhere']),
    ('start = 1', ["'get_config'"]),
    ('def get_config():\n  raise ValueError("not so")', ['not so']),
    ('def get_config():\n  return 5', ['returns int']),
  ],
)
def test_a_config_file_that_cannot_be_used_is_named(tmp_path, text, words):
  if text is not None:
    (tmp_path / 'own.py').write_text(text)
  done = command(
    '--config=own.py',
    '--workdir=bad',
    '--config.seed=1',
    cwd=tmp_path,
    expect=2,
  )
  message = one_error(done)
  for word in ('--config: ', 'own.py', 'allowed', *words):
    assert word in message
  assert not (tmp_path / 'bad').exists()


@pytest.mark.parametrize('workdir', ['file', 'file/below', '/proc/below'])
def test_a_run_folder_that_cannot_be_is_refused_first(tmp_path, workdir):
  (tmp_path / 'file').write_text('no folder')
  done = train(tmp_path, workdir, expect=2)
  message = one_error(done)
  for word in ('--workdir', workdir, 'allowed'):
    assert word in message
  assert not (tmp_path / 'cache').exists()


def test_a_damaged_checkpoint_is_one_error(home):
  """Whichever of its files are cut short."""
  shutil.copytree(home / 'whole', home / 'damaged')
  (home / 'damaged' / 'results.json').unlink()
  for pattern in ('status/*', 'state/**/*'):
    place = home / 'damaged' / 'checkpoints'
    shutil.rmtree(place)
    shutil.copytree(home / 'whole' / 'checkpoints', place)
    for kind in ('best', 'latest'):
      for file in (place / kind).glob(f'*/{pattern}'):
        if file.is_file():
          file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for mode in ('evaluate', 'train'):
      message = one_error(
        train(
          home,
          'damaged',
          f'--mode={mode}',
          '--config.train.num_epochs=3',
          expect=2,
        )
      )
      assert 'checkpoint cannot be restored' in message, message
      assert str(place.resolve()) in message
  assert not (home / 'damaged' / 'results.json').exists()


def test_a_floor_runs_like_any_system(home):
  command(
    f'--config={ROOT}/configs/demo.py:repeat',
    '--workdir=floor',
    '--config.facets.encoder.dim=16',
    '--config.eval.ks=(5,10)',
    '--config.eval.compare=()',
    cwd=home,
  )
  whole, floor = read(home / 'whole'), read(home / 'floor')
  for key, value in whole['floors']['repeat']['test'].items():
    assert floor['test'][key] == value
  assert (floor['parameters'], floor['epochs'], floor['best_epoch']) == (
    0,
    1,
    1,
  )


_NEW_SYSTEM = '''
"""One learned number an item."""

import jax.numpy as jnp
import ml_collections

from dynllm_jax.bases import static_system
from dynllm_jax.types import ItemEmbeddings, UserEmbeddings


def default_config():
  return ml_collections.ConfigDict({'start': 0.5})


def build(config):
  def init(key, inputs):
    return {'liking': jnp.full(len(inputs.item_text), config.start)}

  def propagate(params, memory, inputs, key):
    return {'table': params['liking'][:, None]}

  def embed(params, memory, inputs, users, user_times, items, item_time, key):
    return (UserEmbeddings(jnp.ones([len(users), 1])),
            ItemEmbeddings(items, memory['table'][items]))

  return static_system.build('shuffled', init, embed, propagate=propagate)
'''


def test_a_new_system_is_one_new_file(tmp_path):
  shutil.copytree(ROOT / 'dynllm_jax', tmp_path / 'dynllm_jax')
  (tmp_path / 'dynllm_jax' / 'models' / 'liking.py').write_text(_NEW_SYSTEM)
  arguments = (
    f'--config={ROOT}/configs/demo.py:liking',
    '--workdir=new',
    '--config.facets.encoder.dim=16',
    '--config.eval.compare=()',
    '--config.train.num_epochs=2',
  )
  command(*arguments, cwd=tmp_path)
  results = read(tmp_path / 'new')
  assert results['system'] == 'liking'
  assert (results['parameters'], results['epochs']) == (401, 2)
  assert results['train_step_flops'] > 0
  # It learns who is popular: better than any order of 400 items by chance.
  assert results['validation']['recall@10'] > 2 * 10 / 400
  command(*arguments, '--mode=evaluate', cwd=tmp_path)
  assert read(tmp_path / 'new')['test'] == results['test']


def test_a_static_graph_system_runs_and_evaluates(home):
  args = [
    f'--config={ROOT}/configs/demo.py:lightgcn',
    '--workdir=static',
    '--config.model.dim=8',
    '--config.facets.encoder.dim=16',
    '--config.eval.ks=(5,10)',
    '--config.train.num_epochs=2',
    '--config.eval.compare=()',
  ]
  command(*args, cwd=home)
  trained = read(home / 'static')
  command(*args, '--mode=evaluate', cwd=home)
  again = read(home / 'static')
  for key in ('validation', 'test', 'best_epoch', 'parameters'):
    assert again[key] == trained[key], key
  assert trained['parameters'] == (300 + 1 + 400 + 1) * 8


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(home):
  def folders():
    return sorted((home / 'cache').rglob('*'))

  before = folders()
  done = train(home, 'dry', '--mode=facets', '--dry_run')
  assert 'nothing to write' in done.stdout
  assert 'at most 0 facet texts and 0 item texts to embed' in done.stdout
  done = train(
    home, 'dry', '--mode=facets', '--dry_run', '--config.facets.window_days=7'
  )
  assert 'no language model is asked' in done.stdout
  assert folders() == before and not (home / 'dry').exists()


def test_a_user_is_shown(home):
  (notes,) = (home / 'cache').rglob('profiles.jsonl')
  first = json.loads(notes.read_text().splitlines()[0])
  done = train(home, 'dry', '--mode=facets', f'--user={first["user"]}')
  assert f'user {first["user"]}: ' in done.stdout
  assert 'rule-written (no language model)' in done.stdout
  assert f'{first["num_purchases"]} purchases before it' in done.stdout
  for name in ('crd', 'int', 'ctg', 'brd'):
    assert f'  {name}: ' in done.stdout


def test_whoever_reads_the_output_may_leave(tmp_path):
  """As `head` does: no traceback, and not the status of success."""
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'dynllm_jax.main',
      '--mode=facets',
      f'--config={ROOT}/configs/demo.py',
      *TINY,
      f'--config.data.dir={tmp_path}',
    ],
    cwd=ROOT,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stdout.readline()
  process.stdout.close()
  errors = process.stderr.read()
  assert process.wait(timeout=300) == 1 and not errors
