"""Settings side by side: the study is read, and its page says what it must."""

import numpy as np
import pytest

from dynllm_jax.types import InputError
from experiments import side_by_side_page
from experiments import side_jobs


def study(**changes):
  return {
    'logs': {
      'one': {'fields': {'data.min_user_items': 5}},
      'other': {'events': 'other.csv'},
    },
    'fields': {'train.num_epochs': 3},
    'settings': [
      {'system': 'blend', 'seeds': [0], 'platform': 'cpu'},
      {
        'label': 'small',
        'system': 'dynllm+counts',
        'fields': {'train.num_epochs': 2, 'model.facets': []},
        'logs': ['one'],
      },
    ],
    **changes,
  }


def test_a_job_is_a_setting_on_a_log():
  jobs = side_jobs.jobs_of(study())
  assert [(job.log, job.label, job.seeds) for job in jobs] == [
    ('one', 'blend', (0,)),
    ('other', 'blend', (0,)),
    ('one', 'small', (0, 1, 2)),
  ]
  assert jobs[1].data.events == 'other.csv'
  config = jobs[2].config('folder')
  assert config.train.num_epochs == 2  # of the setting, before the study's
  assert config.data.min_user_items == 5
  assert config.model.facets == () and config.eval.compare == ()
  keys = {job.key(seed) for job in jobs for seed in (0, 1)}
  assert len(keys) == 6


def test_a_wrong_study_is_refused():
  settings = study()['settings']
  for changes, said in (
    ({'settings': []}, 'settings'),
    ({'settings': [{'system': 'tgn', 'logs': ['third']}]}, 'third'),
    ({'settings': settings + settings[:1]}, 'labeled'),
  ):
    with pytest.raises(InputError, match=said):
      side_jobs.jobs_of(study(**changes))
  for fields in ({'model.nothing': 1}, {'train.num_epochs': 'many'}):
    settings = [{'system': 'tgn', 'fields': fields}]
    with pytest.raises(InputError, match=next(iter(fields))):
      side_jobs.jobs_of(study(settings=settings))[0].config('folder')


def records_of(values):
  """Records of one log, and ranks in which a share of events is a hit.

  Args:
    values: hits of 100 events by label and seed.
  """
  records, arrays = [], {'log.users': np.repeat(np.arange(20), 10)}
  for (label, seed), hits in values.items():
    key = f'{label}{seed}'
    ranks = np.where(np.arange(100) % 10 < hits / 10, 1, 50)
    figures = {
      'recall@10': hits / 100,
      'ndcg@10': hits / 100,
      'mrr': hits / 100,
    }
    for split in ('validation', 'test'):
      arrays[f'{key}.{split}'] = (2 * ranks).astype(np.uint16)
    records.append(
      {
        'key': key,
        'log': 'log',
        'label': label,
        'system': label,
        'seed': seed,
        'validation': figures,
        'test': figures,
        'floor': label in ('blend', 'repeat'),
        'best_epoch': 1,
        'epochs': 2,
        'seconds': 3.0,
        'source': 'made up',
        'simulated': True,
        'fingerprint': 'f',
        'split': [800, 100, 100],
        'filter_seen': False,
        'facets': {'writer': 'rules', 'encoder': 'hashing'},
        'commit': 'c' * 40,
        'machine': {'device': 'cpu'},
      }
    )
  return records, arrays


def test_the_page_has_means_ratios_and_paired_tests():
  records, arrays = records_of(
    {
      ('tgn', 0): 50,
      ('tgn', 1): 70,
      ('blend', 0): 40,
      ('blend', 1): 40,
      ('repeat', 0): 30,
    }
  )
  page = '\n'.join(
    side_by_side_page.page(
      records, arrays, [['tgn', 'blend'], ['tgn', 'absent']]
    )
  )
  first, second, third = [
    line
    for line in page.splitlines()
    if line.startswith(('| tgn | 2', '| b', '| r'))
  ]
  # The best on validation comes first.
  assert first.startswith('| tgn | 2 | .6000 (.1414)')
  assert '| 2.000 | 1.500 |' in first
  assert second.startswith('| blend') and '| 1.333 | 1.000 |' in second
  assert third.startswith('| repeat | 1 | .3000 |')
  # Each user gains as much, so that no resample says otherwise.
  assert '| tgn | blend | test | 2, 2 | +50.0% | 0.002 |' in page
  assert 'absent' not in page


def test_runs_of_other_data_are_refused():
  records, arrays = records_of({('tgn', 0): 50, ('blend', 0): 40})
  records[1]['fingerprint'] = 'another'
  with pytest.raises(InputError, match='fingerprint'):
    side_by_side_page.page(records, arrays, [])
