"""The script for accelerators, as far as it needs none."""

import json

import numpy as np
import pytest

from dynllm_jax.types import InputError
from experiments import accelerator_results


def _write_run(folder, ranks, sums):
  """A run folder with what `compare_runs` reads."""
  record = folder / 'checkpoints' / 'latest' / '1' / 'status'
  record.mkdir(parents=True)
  (record / 'metadata').write_text(json.dumps({'arrays': sums}))
  np.savez(folder / 'ranks.npz', test=ranks, test_users=ranks)


def test_equal_runs_are_told_from_others(tmp_path):
  one, other = tmp_path / 'one', tmp_path / 'other'
  _write_run(one, np.array([1, 2, 3, 9]), {'a': 1, 'b': 2})
  _write_run(other, np.array([1, 2, 5, 9]), {'a': 1, 'b': 3})

  same = accelerator_results.compare_runs(one, one)
  assert same['identical'] and same['arrays_equal'] == same['arrays'] == 2

  found = accelerator_results.compare_runs(one, other)
  assert not found['identical'] and found['arrays_equal'] == 1
  assert found['test'] == {'events': 4, 'equal': 0.75, 'largest': 2}


def test_the_page_says_what_failed_and_what_is_not_equal():
  speed = {
    'tgn': {'events_per_s': 1e6, 'compile_s': 3.0},
    'bad': {'failed': 'why'},
    'gemm_side': 512,
    'gemm_peak_tflop_per_s': 300.0,
  }
  lines = accelerator_results.speed_page(speed)
  assert any(line.startswith('| tgn | 1,000,000 | 2.05 |') for line in lines)
  assert any(line.startswith('| bad | - | failed |') for line in lines)

  splits = {'test': {'events': 4, 'equal': 0.75, 'largest': 2}}
  run = {
    'two_runs': {'identical': True, 'arrays': 2, 'arrays_equal': 1},
    'device_and_cpu': {'identical': False, **splits},
  }
  text = '\n'.join(accelerator_results.run_page('tgn', run))
  assert 'not equal: 1 of 2 arrays' in text and '75.0000% of 4 ranks' in text


def test_a_further_case_has_three_parts():
  assert accelerator_results.cases(['tgn'], ['x|dynllm|--xla_a=1']) == [
    ('tgn', 'tgn', ''),
    ('x', 'dynllm', '--xla_a=1'),
  ]
  with pytest.raises(InputError, match='--also'):
    accelerator_results.cases([], ['tgn --xla_flag'])
