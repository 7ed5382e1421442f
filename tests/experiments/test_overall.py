"""The experiments' commands, on the small simulated log."""

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dynllm_jax import config as config_lib
from dynllm_jax.engine import significance
from dynllm_jax.types import InputError
from experiments import grids
from experiments import overall_page
from experiments import overall_results
from experiments import rank_arrays
from experiments import result_rows
from experiments import studies
from tests.testing import ROOT


def command(home, name, *args, expect=0):
  """Runs a command in a copy of the experiments and configs."""
  environment = {
    **os.environ,
    'XDG_CACHE_HOME': str(home / 'cache'),
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': f'{home}{os.pathsep}{ROOT}',
  }
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', '--logs=demo', *args],
    cwd=home,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == expect, done.stderr[-3000:]
  return done


@pytest.mark.slow
def test_rows_pages_and_going_on(tmp_path):
  overall = functools.partial(command, tmp_path, 'overall')
  for part in ('experiments', 'configs'):
    shutil.copytree(
      ROOT / part,
      tmp_path / part,
      ignore=shutil.ignore_patterns('results', '__pycache__'),
    )
  overall('--systems=popularity,repeat')
  results = tmp_path / 'experiments' / 'results'
  table = json.loads((results / 'demo.json').read_text())
  assert table['log'] == 'demo' and table['simulated'] is True
  assert set(table['systems']) == {'popularity', 'repeat'}
  entry = table['systems']['repeat']
  low, high = entry['interval']
  assert low < entry['test']['recall@10'] < high
  page = (results / 'demo.md').read_text()
  assert 'Simulated log' in page and 'rule-written' in page
  assert (results / 'demo.svg').read_text().startswith('<?xml')
  (ranks,) = (results / 'rows' / 'overall' / 'demo').glob('repeat-*.npz')
  with np.load(ranks) as stored:
    share = np.mean(stored['doubled_ranks'] <= 2 * 10)
  assert share == entry['test']['recall@10']

  # A finished row is not computed again, whether its ranks are there or not;
  # a new system joins the page.
  content = ranks.read_bytes()
  ranks.unlink()
  again = overall('--systems=popularity')
  assert '$ ' not in again.stdout
  assert json.loads((results / 'demo.json').read_text()) == table

  for name in ('overall', 'verify'):
    flag = {'overall': '--verify=repeat', 'verify': '--rows='}[name]
    same = command(tmp_path, name, flag).stdout
    stored, again = re.search(r'mrr: stored (.+), again (.+)', same).groups()
    assert stored == again
    assert same.endswith('test events: same\n')
    assert ranks.read_bytes() == content
    ranks.unlink()

  (row,) = ranks.parent.glob('repeat-*.json')
  text = row.read_text()
  text = text.replace('"doubled_ranks": "', '"doubled_ranks": "0')
  row.write_text(text.replace('"mrr": ', '"mrr": 9'))
  assert 'came out different' in overall('--verify=repeat', expect=2).stderr
  assert not ranks.exists()

  assert 'no row' in overall('--verify=transitions', expect=2).stderr
  for bad, word in (('--systems=repeat,foo', 'foo'), ('--seeds=a', '--seeds')):
    assert word in overall(bad, expect=2).stderr


def rank_row(key, arrays):
  """What a row says of its ranks."""
  gains = significance.gains
  metrics = ('recall@10', 'ndcg@10', 'mrr')
  return {
    'key': key,
    'arrays_sha256': arrays.check_sums(),
    'test': {metric: gains(arrays.ranks, metric).mean() for metric in metrics},
  }


def test_ranks_that_are_not_those_of_the_row_are_refused(tmp_path):
  users = np.array([7, 7, 8], np.int32)
  made = lambda *doubled: rank_arrays.RankArrays(
    np.array(doubled, np.uint16), users
  )
  arrays = made(2, 5, 65_535)
  row = rank_row('k', arrays)
  assert rank_arrays.read(tmp_path, row) is None
  for others, agreement in (
    (arrays, 'same'),
    (made(2, 5, 65_534), 'close'),
    (made(2, 40, 65_535), 'different'),
    (arrays._replace(users=users + 1), 'different'),
  ):
    assert rank_arrays.agreement(others, row) == agreement

  rank_arrays.write(tmp_path, 'k', arrays)
  found = rank_arrays.read(tmp_path, row)
  np.testing.assert_array_equal(found.ranks, [1, 2.5, 32_767.5])
  np.testing.assert_array_equal(found.users, arrays.users)
  rank_arrays.write(tmp_path, 'k', made(2, 40, 65_535))
  with pytest.raises(InputError, match='check sums and figures differ'):
    rank_arrays.read(tmp_path, row)


def test_p_comes_from_ranks_or_from_the_page_or_is_said_to_be_missing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(result_rows, 'RESULTS', tmp_path)
  log = result_rows.Log('overall', 'demo')
  found, rng = {}, np.random.default_rng(0)
  for system in ('dynllm', 'tgn'):
    arrays = rank_arrays.RankArrays(
      rng.integers(2, 60, 200).astype(np.uint16),
      np.repeat(np.arange(20, dtype=np.int32), 10),
    )
    rank_arrays.write(log.folder, system, arrays)
    found[system] = [rank_row(system, arrays)]
  figures = {'recall@10': 0.3, 'ndcg@10': 0.2}
  systems = {s: {'test': figures, 'validation': figures} for s in found}

  whole = overall_results.compare(log, found, systems, [])
  assert [c['metric'] for c in whole] == list(figures)
  assert all(0 < c['p'] <= 1 and c['rows'] == list(found) for c in whole)
  page = '\n'.join(
    overall_page.comparisons({'log': 'demo', 'comparisons': whole})
  )
  assert f'{whole[0]["p"]:.3f}' in page
  assert 'needs ranks' not in page and 'made again' not in page

  few = arrays._replace(doubled_ranks=arrays.doubled_ranks.copy())
  last = np.argmax(few.doubled_ranks)
  few.doubled_ranks[last] += 1  # of 1/30 in 200 events
  rank_arrays.write(log.folder, 'tgn', few)
  close = overall_results.compare(log, found, systems, [])
  assert [c['ranks'] for c in whole + close] == ['same'] * 2 + ['close'] * 2
  page = '\n'.join(
    overall_page.comparisons({'log': 'demo', 'comparisons': close})
  )
  assert 'p of R@10 and N@10 comes from ranks that were made again' in page

  (log.folder / 'tgn.npz').unlink()
  assert overall_results.compare(log, found, systems, whole) == whole
  for other in ([], [{**c, 'rows': ['dynllm', 'another']} for c in whole]):
    without = overall_results.compare(log, found, systems, other)
    assert [c['p'] for c in without] == [None, None]
  page = '\n'.join(
    overall_page.comparisons({'log': 'demo', 'comparisons': without})
  )
  assert page.count('| needs ranks |') == 2
  assert '--logs=demo=EVENTS,ITEMS --rows=dynllm,tgn' in page


@pytest.mark.parametrize(
  'system', ['tgn+text', 'lightgcn', 'mf', 'sasrec', 'hstu', 'ease', 'upcf']
)
def test_every_point_of_a_grid_is_a_field_of_the_configuration(system):
  points = grids.grid(system)
  assert len(set(points)) == len(points) == 4
  flat = dict(config_lib.flatten(config_lib.default(system).to_dict()))
  for point in points:
    fields = [
      *grids.tuning_fields(system, point, 100),
      *grids.final_fields(system, point, 100, 1.0),
    ]
    assert dict(point).items() <= dict(fields).items()
    assert {name for name, _ in fields} <= set(flat)
  assert grids.grid('transitions') == []


def test_budgets_are_updates_and_seconds():
  def epochs(per_epoch, seconds):
    return dict(grids.final_fields('mf', (), per_epoch, seconds))[
      'train.num_epochs'
    ]

  assert epochs(100, 1.0) == 200  # of 20,000 updates
  assert epochs(100, 10.0) == grids.MAX_SECONDS // 10
  assert epochs(100, 10_000.0) == epochs(50_000, 1.0) == grids.MIN_EPOCHS
  short, long = (
    dict(grids.tuning_fields('mf', (), 100, again)) for again in (False, True)
  )
  assert long['train.num_epochs'] == 2 * short['train.num_epochs'] == 80
  assert long['eval.validation_events'] == 0 < short['eval.validation_events']


def test_points_that_events_cannot_tell_apart_are_tried_again():
  tried = [
    {'point': k, 'validation_recall@10': value}
    for k, value in enumerate((0.0500, 0.0479, 0.0477))
  ]
  # The standard error of .05 over 10,000 events is .0022.
  assert grids.within_an_error([*tried, {'point': 9, 'failed': ''}]) == [0, 1]


def test_updates_of_an_epoch_are_batches_of_the_plan(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  log = result_rows.Log('overall', 'demo')
  of = lambda system, *point: grids.updates_per_epoch(log, system, point)
  many, few = (of('mf', ('train.batch_size', size)) for size in (100, 1000))
  assert few == math.ceil(many / 10)
  assert of('sasrec', ('train.batch_size', 10_000)) == 1


def test_a_row_is_refused_where_what_made_it_is_another(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(result_rows, 'RESULTS', tmp_path)
  (tmp_path / 'a.csv').write_text('user_id,item_id,timestamp\n')
  (tmp_path / 'b.csv').write_text('user_id,item_id,timestamp\n1,2,3\n')
  log = result_rows.Log('overall', 'event_log', str(tmp_path / 'a.csv'))
  setting = result_rows.Setting('tgn', (('train.loss', 'bpr'),), 1)
  origin = result_rows.origin(log, setting)
  assert not {'config.train.loss', 'config.seed'} & origin['config'].keys()
  assert origin['config']['config.train.batch_size'] == 1024
  log.folder.mkdir(parents=True)

  def store(**changes):
    config = {**origin['config'], **changes}
    (log.folder / f'{setting.key}.json').write_text(
      json.dumps({'seed': 1, 'origin': {**origin, 'config': config}})
    )

  store()
  assert result_rows.read(log, setting)['seed'] == 1
  with pytest.raises(InputError, match='other files'):
    result_rows.read(
      result_rows.Log('overall', 'event_log', str(tmp_path / 'b.csv')), setting
    )
  store(**{'config.model.dim': 7})
  with pytest.raises(InputError, match='config.model.dim 7'):
    result_rows.read(log, setting)
  del origin['config']['config.model.dim']  # as if it were a new field
  store()
  assert result_rows.read(log, setting)['seed'] == 1


def test_rows_that_cannot_stand_in_one_table_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(result_rows, 'RESULTS', tmp_path)
  log = result_rows.Log('overall', 'demo')
  log.folder.mkdir(parents=True)
  row = {
    'key': 'k',
    'system': 'tgn',
    'seed': 0,
    'fields': {'a': 1},
    'test': {},
    'fingerprint': 'f',
    'split': [1],
    'facets': {'writer': 'rules'},
    'evaluation': {'candidates': 'all', 'filter_seen': False},
  }

  def with_another(**changes):
    for name, value in (('one', row), ('two', {**row, **changes})):
      (log.folder / f'{name}.json').write_text(json.dumps(value))
    return result_rows.finished(log)

  assert len(with_another(seed=1)['tgn']) == 2
  for changes, words in (
    ({}, 'one seed'),
    ({'seed': 1, 'fields': {'a': 2}}, 'other fields'),
    ({'system': 'gat', 'fingerprint': 'g'}, 'fingerprint'),
    (
      {'seed': 1, 'evaluation': {**row['evaluation'], 'filter_seen': True}},
      'filter_seen',
    ),
  ):
    with pytest.raises(InputError, match=words):
      with_another(**changes)


def test_a_configured_value_is_not_run_twice():
  config = config_lib.default('dynllm')
  for dim, left in ((128, {}), (256, {'model.dim': 256})):
    assert (
      studies.differing({'model.dim': dim, 'model.distill.top_r': 80}, config)
      == left
    )


def test_a_study_has_a_page_and_a_chart(tmp_path, monkeypatch):
  monkeypatch.setattr(result_rows, 'RESULTS', tmp_path)
  records = [
    {
      'label': label,
      'source': 'made up',
      'simulated': True,
      'system': 'tgn',
      'seed': 3,
      'facets': {'writer': 'rule-written', 'encoder': 'hashing'},
      'epochs': 2,
      'train_events_per_s': 1.0,
      'commit': 'c',
      'command': 'x',
      **{
        split: dict.fromkeys(('recall@10', 'ndcg@10', 'mrr'), value)
        for split in ('validation', 'test')
      },
    }
    for label, value in (('as configured', 0.2), ('without memory', 0.15))
  ]
  study = studies.Study('Ablation', 'tgn', 4, 3, tmp_path / 'runs')
  studies.write_page(result_rows.Log('ablation', 'demo'), study, records)
  page = (tmp_path / 'ablation_demo.md').read_text()
  assert 'Simulated log: made up; system tgn, seed 3' in page
  assert '-25.0%' in page and '![Recall@10](ablation_demo.svg)' in page
  assert (tmp_path / 'ablation_demo.svg').read_text().startswith('<?xml')
  assert json.loads((tmp_path / 'ablation_demo.json').read_text()) == records
