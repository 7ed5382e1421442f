"""Whole runs through the command, at tiny width on a simulated log."""

import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from dynllm_jax.runs import cases
from dynllm_jax.runs import comparison
from dynllm_jax.runs import interrupts
from dynllm_jax.runs import run_page
from dynllm_jax.types import FACETS
from dynllm_jax.types import InputError
from tests.testing import commands
from tests.testing import ROOT
from tests.testing.commands import command
from tests.testing.commands import read_json
from tests.testing.commands import read_metrics
from tests.testing.commands import tiny_command

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with one finished run of two epochs, `whole`."""
  folder = tmp_path_factory.mktemp('runs')
  tiny_command('--config.train.num_epochs=2', cwd=folder, workdir='whole')
  return folder


# For runs whose floors nobody looks at.
ONE_FLOOR = '--config.eval.compare=("repeat",)'


@pytest.fixture(scope='module')
def one_epoch(home):
  """The folder of a run of one epoch, to be copied."""
  tiny_command(
    '--config.train.num_epochs=1', ONE_FLOOR, cwd=home, workdir='one'
  )
  return home / 'one'


# ------------------------------------------------------------ what a run leaves


def test_a_run_leaves_its_results(home):
  results = read_json(home / 'whole')
  for split in ('validation', 'test'):
    figures = results[split]
    assert figures['events'] == 1350
    assert 0 < figures['recall@5'] <= figures['recall@10'] <= 1
    assert 0 < figures['ndcg@10'] <= figures['recall@10']
    groups = figures['groups']
    assert groups['head']['events'] + groups['tail']['events'] == 1350
  assert set(results['floors']) == {
    'popularity',
    'recent_popularity',
    'repeat',
    'transitions',
    'itemknn',
    'blend',
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


def test_a_run_leaves_checkpoints_ranks_and_metrics(home):
  folder = home / 'whole'
  assert (folder / 'checkpoints' / 'latest' / '2').is_dir()
  assert len(list((folder / 'checkpoints' / 'best').iterdir())) == 1
  with np.load(folder / 'ranks.npz') as ranks:
    recall = read_json(folder)['test']['recall@10']
    assert np.mean(ranks['test'] <= 10) == recall
    assert len(ranks['validation']) == 1350
  assert [record['epoch'] for record in read_metrics(folder)] == [1, 2]
  assert list((folder / 'tensorboard').glob('events.*'))
  assert read_json(folder, 'config.json')['model']['dim'] == 8


HOSTILE = '</dd><script>alert("1")</script><img src=x onerror=alert(2)>\ud83d'


def test_a_run_leaves_a_page(home):
  """It holds what the results say, and asks nothing of a network."""
  results = read_json(home / 'whole')
  page = (home / 'whole' / 'report.html').read_text()
  assert f'{results["test"]["recall@10"]:.4f}' in page
  assert results['verdict']['rival'] in page
  assert page.count('<details') == 12 and page.count('<svg') >= 12 + 4
  assert 'rule-written (no language model)' in page
  assert_harmless(page)


def test_a_page_escapes_whatever_the_log_says(home):
  def hostile(value):
    if isinstance(value, dict):
      return {k: hostile(v) for k, v in value.items()}
    return HOSTILE if isinstance(value, str) else value

  results = read_json(home / 'whole')
  verdict = results['verdict']
  for name in ('data', 'facets', 'machine'):
    results[name] = hostile(results[name])
  results['floors_left_out'] = {HOSTILE: HOSTILE}
  results['verdict'] = {**verdict, 'advice': [HOSTILE]}
  purchase = cases.Purchase(0, HOSTILE, HOSTILE, True)
  lifts = {HOSTILE: 1.0, 'b': -1.0}
  item = cases.Recommendation(HOSTILE, HOSTILE, HOSTILE, 1.0, lifts, True, True)
  texts = dict.fromkeys(FACETS, HOSTILE)
  case = cases.Case(
    HOSTILE, 9, 1, [0], [purchase], texts, [item], 1, [9], [purchase]
  )
  with np.load(home / 'whole' / 'floors.npz') as floors:
    ranks = {results['system']: floors['repeat'], **floors}
  page = run_page.page(results, ranks, read_metrics(home / 'whole'), [case])
  assert_harmless(page)
  assert page.encode().count(b'&lt;script&gt;alert') > 15


def assert_harmless(page):
  """No script, and nothing that is fetched from anywhere."""
  parser = Tags()
  parser.feed(page)
  assert not parser.names & {'script', 'img', 'iframe', 'link', 'object'}
  assert not {name for name in parser.attributes if name.startswith('on')}
  assert not parser.attributes & {'src', 'href', 'action'}
  assert 'url(' not in page and '@import' not in page


class Tags(html.parser.HTMLParser):
  """The tags and attributes of a page."""

  def __init__(self):
    super().__init__()
    self.names, self.attributes = set(), set()

  def handle_starttag(self, tag, attrs):
    self.names.add(tag)
    self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope='module')
def other(home):
  """A run beside `whole` that ranks every test event a little worse."""
  folder = home / 'other'
  shutil.copytree(home / 'whole', folder)
  with np.load(folder / 'ranks.npz') as arrays:
    arrays = dict(arrays)
  arrays['test'] = arrays['test'] * 2
  np.savez(folder / 'ranks.npz', **arrays)
  results = read_json(folder) | {'commit': 'dynllm_jax 0.1.0, no checkout'}
  (folder / 'results.json').write_text(json.dumps(results))
  return folder


def test_runs_are_compared(home, other):
  done = command(
    *('--mode=compare', '--runs=whole,other', '--workdir=page'), cwd=home
  )
  assert 'whole is ahead of the other run, other' in done.stdout
  page = (home / 'page' / 'comparison.html').read_text()
  recall = read_json(home / 'whole')['test']['recall@10']
  assert f'{recall:.4f}' in page and 'repeat (floor)' in page
  assert '<td>dynllm_jax 0.1.0, no checkout</td>' in page
  # A run has its color in every chart, and floors have none of them.
  for color in ('s0', 's1', 'floor'):
    assert f'<line class="line {color}"' in page
  assert (
    page.count('<td class="ahead">') == page.count('<td class="behind">') == 1
  )
  assert_harmless(page)


@pytest.mark.parametrize(
  'section, field, value, words',
  [
    ('data', 'fingerprint', 'another', 'the prepared data'),
    ('evaluation', 'filter_seen', True, 'config.eval.filter_seen'),
    ('evaluation', 'candidates', 'future', 'config.eval.candidates'),
    ('evaluation', 'batch_size', 512, 'config.eval.batch_size'),
    ('evaluation', 'ks', [7], 'no cut-off of config.eval.ks'),
  ],
)
def test_runs_that_do_not_compare_are_refused(
  home, other, tmp_path, section, field, value, words
):
  results = read_json(other)
  results[section][field] = value
  shutil.copytree(other, tmp_path / 'changed')
  (tmp_path / 'changed' / 'results.json').write_text(json.dumps(results))
  runs = [str(home / 'whole'), str(tmp_path / 'changed')]
  with pytest.raises(InputError, match=f'--runs: .*{words}.*; allowed: '):
    comparison.run(runs, str(tmp_path / 'page'))
  assert not (tmp_path / 'page').exists()


@pytest.mark.parametrize(
  'runs', [['whole'], ['whole', 'whole'], ['whole', 'no']]
)
def test_what_is_no_two_runs_is_refused(home, runs, tmp_path):
  folders = [str(home / name) for name in runs]
  with pytest.raises(InputError, match='--runs: .*; allowed: '):
    comparison.run(folders, str(tmp_path / 'page'))


def test_a_tuning_run_looks_at_no_test_event(home):
  tiny_command(
    '--config.train.num_epochs=1',
    '--config.eval.test=False',
    '--config.eval.validation_events=100',
    '--config.eval.compare=()',
    cwd=home,
    workdir='tuned',
  )
  assert not (home / 'tuned' / 'results.json').exists()
  (record,) = read_metrics(home / 'tuned')
  assert 100 <= record['validation_events'] < 100 + 256


# ------------------------------------------------------ evaluating and resuming


def test_a_finished_run_shows_its_results_and_ranks_nothing(home):
  files = [home / 'whole' / name for name in ('results.json', 'report.html')]
  before = [file.stat().st_mtime_ns for file in files]
  done = tiny_command('--config.train.num_epochs=2', cwd=home, workdir='whole')
  assert 'this run is finished, after epoch 2' in done.stdout
  assert 'ranking' not in done.stdout.partition('finished')[2].splitlines()[0]
  recall = read_json(home / 'whole')['test']['recall@10']
  assert f'{recall:.4f}' in done.stdout and 'verdict: ' in done.stdout
  assert [file.stat().st_mtime_ns for file in files] == before


def test_an_interrupted_run_says_how_to_go_on(home):
  """Ctrl-C after the first epoch; the same command finishes the run."""
  args = [
    f'--config={ROOT}/configs/demo.py',
    '--workdir=stopped',
    *commands.TINY,
    '--config.train.num_epochs=3',
    '--config.eval.compare=()',
  ]
  process = subprocess.Popen(
    [sys.executable, '-m', 'dynllm_jax.main', *args],
    cwd=home,
    text=True,
    env={
      **os.environ,
      'XDG_CACHE_HOME': str(home / 'cache'),
      'JAX_PLATFORMS': 'cpu',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  for line in process.stdout:
    if line.startswith('epoch 1: '):
      process.send_signal(signal.SIGINT)
      break
  _, errors = process.communicate(timeout=300)
  assert process.returncode == interrupts.STATUS
  (line,) = errors.strip().splitlines()
  assert 'stopped: every finished epoch is kept in stopped' in line

  done = command(*args, cwd=home)
  assert 'resuming after epoch' in done.stdout
  assert read_json(home / 'stopped')['epochs'] == 3


def test_evaluate_gives_the_same_figures(home):
  """Also from a folder that was moved."""
  shutil.copytree(home / 'whole', home / 'moved')
  trained = read_json(home / 'moved')
  (home / 'moved' / 'results.json').unlink()

  done = tiny_command(
    '--mode=evaluate', '--config.seed=5', cwd=home, workdir='moved'
  )
  again = read_json(home / 'moved')
  assert again.keys() == trained.keys()
  same = 'validation', 'test', 'floors', 'best_epoch', 'parameters', 'seed'
  for key in same:
    assert again[key] == trained[key], key
  assert 'dynllm+text' in done.stdout and 'simulated' in done.stdout


def test_a_resumed_run_equals_an_uninterrupted_one(home, one_epoch):
  shutil.copytree(one_epoch, home / 'parts')
  tiny_command(
    '--config.train.num_epochs=2', ONE_FLOOR, cwd=home, workdir='parts'
  )
  whole, parts = read_json(home / 'whole'), read_json(home / 'parts')
  for key in ('validation', 'test', 'best_epoch', 'epochs'):
    assert whole[key] == parts[key], key

  without_times = lambda records: [
    {k: v for k, v in record.items() if not k.endswith(('seconds', '_per_s'))}
    for record in records
  ]
  whole, parts = (read_metrics(home / name) for name in ('whole', 'parts'))
  assert without_times(whole) == without_times(parts)


def test_a_run_killed_between_its_two_saves_loses_nothing(home, one_epoch):
  """The best epoch is saved first; figures at other cut-offs follow from it."""
  folder = home / 'killed'
  shutil.copytree(one_epoch, folder)

  def run(epochs):
    return tiny_command(
      f'--config.train.num_epochs={epochs}',
      ONE_FLOOR,
      '--config.eval.ks=(5,20)',
      cwd=home,
      workdir='killed',
    )

  before = read_json(folder)
  for name in ('checkpoints/latest', 'tensorboard'):
    shutil.rmtree(folder / name)
  for name in ('results.json', 'metrics.jsonl'):
    (folder / name).unlink()

  done = run(1)
  assert 'resuming after epoch 1' in done.stdout
  assert 'epoch 1: ' not in done.stdout
  after = read_json(folder)
  for old, new in (
    (before, after),
    (before['floors']['repeat'], after['floors']['repeat']),
  ):
    assert old['test']['recall@5'] == new['test']['recall@5']
    assert 'recall@20' in new['test'] and 'recall@20' not in old['test']
  (record,) = read_metrics(folder)
  assert record['epoch'] == 1
  assert len(list((folder / 'tensorboard').iterdir())) == 1

  run(2)
  assert read_json(folder)['epochs'] == 2


# ---------------------------------------------------------------- other systems


def test_a_floor_runs_like_any_system(home):
  command(
    f'--config={ROOT}/configs/demo.py:repeat',
    '--workdir=floor',
    '--config.facets.encoder.dim=16',
    '--config.eval.ks=(5,10)',
    '--config.eval.compare=()',
    cwd=home,
  )
  whole, floor = read_json(home / 'whole'), read_json(home / 'floor')
  for key, value in whole['floors']['repeat']['test'].items():
    assert floor['test'][key] == value
  assert floor['parameters'] == 0
  assert floor['epochs'] == floor['best_epoch'] == 1


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
  trained = read_json(home / 'static')
  command(*args, '--mode=evaluate', cwd=home)
  again = read_json(home / 'static')
  for key in ('validation', 'test', 'best_epoch', 'parameters'):
    assert again[key] == trained[key], key
  assert trained['parameters'] == (300 + 1 + 400 + 1) * 8


NEW_SYSTEM = '''
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
  (tmp_path / 'dynllm_jax' / 'models' / 'liking.py').write_text(NEW_SYSTEM)
  args = (
    f'--config={ROOT}/configs/demo.py:liking',
    '--workdir=new',
    '--config.facets.encoder.dim=16',
    '--config.eval.compare=()',
    '--config.train.num_epochs=2',
  )
  command(*args, cwd=tmp_path)
  results = read_json(tmp_path / 'new')
  assert results['system'] == 'liking'
  assert (results['parameters'], results['epochs']) == (401, 2)
  assert results['train_step_flops'] > 0
  # It learns who is popular: better than any order of 400 items by chance.
  assert results['validation']['recall@10'] > 2 * 10 / 400

  command(*args, '--mode=evaluate', cwd=tmp_path)
  assert read_json(tmp_path / 'new')['test'] == results['test']


# ---------------------------------------------------------------- --mode=facets


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(home):
  def dry_run(*args):
    return tiny_command(
      '--mode=facets', '--dry_run', *args, cwd=home, workdir='dry'
    )

  files = lambda: sorted((home / 'cache').rglob('*'))
  before = files()
  done = dry_run()
  assert 'nothing to write' in done.stdout
  assert 'at most 0 facet texts and 0 item texts to embed' in done.stdout
  done = dry_run('--config.facets.window_days=7')
  assert 'no language model is asked' in done.stdout
  assert files() == before and not (home / 'dry').exists()


def test_a_user_is_shown(home):
  (notes,) = (home / 'cache').rglob('profiles.jsonl')
  first = json.loads(notes.read_text().splitlines()[0])
  done = tiny_command(
    '--mode=facets', f'--user={first["user"]}', cwd=home, workdir='dry'
  )
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
      *commands.TINY,
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
