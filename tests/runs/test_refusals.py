"""What a run refuses: in one line of error, before any work, and whole.

Bad flags and fields, run folders that cannot be used, and checkpoints of
another configuration or that are damaged.
"""

import shutil

import pytest

from dynllm_jax.runs import run_folder
from tests.testing.commands import command
from tests.testing.commands import one_error
from tests.testing.commands import read_json
from tests.testing.commands import tiny_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with one finished run of an epoch, `whole`."""
  folder = tmp_path_factory.mktemp('runs')
  tiny_command(
    '--config.train.num_epochs=1',
    '--config.eval.compare=()',
    cwd=folder,
    workdir='whole',
  )
  return folder


# ------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
  'args, words',
  [
    (['--config.model.dimm=8'], ['dimm', 'allowed']),
    (['--config.eval.ks=(401,)'], ['config.eval.ks', '401', '400']),
    (['--config.model.distill.top_r=9'], ['top_r', '9', 'r <= d']),
    (['--config.eval.ks=(5,"ten")'], ['config.eval.ks', "'ten'", 'from 1']),
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
    (
      ['--config.eval.compare=("nosuch",)'],
      ['config.eval.compare', "'nosuch'", 'repeat'],
    ),
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
  done = tiny_command(*args, cwd=home, workdir='bad', expect=2)
  message = one_error(done)
  for word in words:
    assert word in message
  assert not (home / 'bad').exists()


def test_a_bad_row_is_named_and_leaves_nothing(home):
  rows = ['user_id,item_id,timestamp', 'a,x,1600000000', 'a,y,soon']
  (home / 'log.csv').write_text('\n'.join(rows) + '\n')
  done = tiny_command(
    '--config.data.events=log.csv',
    cwd=home,
    workdir='bad',
    config='event_log',
    expect=2,
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


# ----------------------------------------------------------------- run folders


@pytest.mark.parametrize('workdir', ['file', 'file/below', '/proc/below'])
def test_a_run_folder_that_cannot_be_is_refused_first(tmp_path, workdir):
  (tmp_path / 'file').write_text('no folder')
  done = tiny_command(cwd=tmp_path, workdir=workdir, expect=2)
  message = one_error(done)
  for word in ('--workdir', workdir, 'allowed'):
    assert word in message
  assert not (tmp_path / 'cache').exists()


def test_two_runs_in_one_folder_are_refused(home):
  before = read_json(home / 'whole')
  with run_folder.RunFolder(str(home / 'whole')).held():
    for mode in ('train', 'evaluate'):
      done = tiny_command(f'--mode={mode}', cwd=home, workdir='whole', expect=2)
      assert one_error(done).startswith("--workdir: 'whole' is in use")
  assert read_json(home / 'whole') == before


# ----------------------------------------------------------------- checkpoints


def test_another_configuration_is_refused(home):
  before = read_json(home / 'whole')
  for mode in ('train', 'evaluate'):
    done = tiny_command(
      '--config.model.projection=linear',
      f'--mode={mode}',
      cwd=home,
      workdir='whole',
      expect=2,
    )
    assert one_error(done) == (
      "config.model.projection: 'linear' differs from 'interval' of the "
      'checkpoint in whole; allowed: the same, or another --workdir'
    )
  assert read_json(home / 'whole') == before


@pytest.mark.parametrize('files', ['status/*', 'state/**/*'])
@pytest.mark.parametrize('mode', ['train', 'evaluate'])
def test_a_damaged_checkpoint_is_one_error(home, tmp_path, mode, files):
  """Whichever of its files are cut short."""
  folder = tmp_path / 'damaged'
  shutil.copytree(home / 'whole', folder)
  (folder / 'results.json').unlink()
  for file in (folder / 'checkpoints').glob(f'*/*/{files}'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

  done = tiny_command(
    f'--mode={mode}',
    '--config.train.num_epochs=2',
    cwd=home,
    workdir=str(folder),
    expect=2,
  )
  message = one_error(done)
  assert 'checkpoint cannot be restored' in message
  assert str(folder.resolve() / 'checkpoints') in message
  assert not (folder / 'results.json').exists()
