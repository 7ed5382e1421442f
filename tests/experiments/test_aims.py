"""Aims: which are asked for, which are met, and the page that says so."""

import json

import pytest

from dynllm_jax.types import InputError
from experiments import aims


def test_a_part_does_not_replace_a_whole_page():
  known = ['tgn_b200', 'ngcf']
  for asked, out in (([], 'page'), (['tgn', 'ngcf'], 'page'), (['tgn'], 'b')):
    aims.check_asked('aims', asked, known, out, 'page')
  for asked, out, words in (
    (['tgnx'], 'b', "--aims: 'tgnx'"),
    (['tgn'], 'page', 'a part'),
  ):
    with pytest.raises(InputError, match=words):
      aims.check_asked('aims', asked, known, out, 'page')


def test_an_aim_is_met_or_not_or_not_run():
  fast, small = aims.Aim(3.0), aims.Aim(1.1, at_most=True)
  assert aims.line('fast', fast, {'value': 3.5}) == (
    'aim=fast value=3.5 wanted=3 met=yes'
  )
  assert aims.line('fast', fast, {'value': None}) == (
    'aim=fast value=- wanted=3 met=not run'
  )
  assert fast.met(2.9) == small.met(1.2) == 'no'
  assert small.met(1.1) == 'yes'


def test_the_page_and_the_figures_of_aims(tmp_path):
  aims.write(
    str(tmp_path / 'page'),
    'Title',
    about={'log': 'a log'},
    aims={'fast': aims.Aim(3.0), 'left_out': aims.Aim(1.0)},
    results={'fast': {'value': 2.0, 'peer': 'a peer'}},
    more=['more'],
  )
  stored = json.loads((tmp_path / 'page.json').read_text())
  assert stored['aims'] == {
    'fast': {
      'wanted': 3.0,
      'at_most': False,
      'met': 'no',
      'value': 2.0,
      'peer': 'a peer',
    }
  }
  page = (tmp_path / 'page.md').read_text()
  assert '| fast | 2 | at least 3 | no | peer: a peer |' in page
  assert page.endswith('more\n')
