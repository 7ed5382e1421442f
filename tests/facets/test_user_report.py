"""What a reader is shown of a user."""

import pytest

from dynllm_jax.facets import facet_bank
from dynllm_jax.facets import user_report
from dynllm_jax.types import InputError
from tests.testing import facet_answers


@pytest.fixture(name='log')
def fixture_log(make_log):
  return make_log(
    facet_answers.EVENTS, facet_answers.TITLES, brands=facet_answers.BRANDS
  )


def show(log, folder, user):
  lines = []
  user_report.show(rules(), log, str(folder), user, lines.append)
  return lines


def rules():
  return facet_answers.fields(name='rules', model='')


def test_profiles_with_the_purchases_behind_them(log, tmp_path):
  got, about = facet_bank.build(rules(), log, str(tmp_path), lambda line: None)
  lines = show(log, tmp_path, 'u1')
  assert lines[0] == (
    f'user u1: 2 profiles of 10 days; {about["writer"]}; {about["encoder"]}'
  )
  # The log begins on Monday, 4 January 2021.
  assert lines[2] == (
    'closes 2021-01-14 00:00, serves from then until 2021-01-24 00:00'
  )
  assert [line.split(':')[0].strip() for line in lines[3:7]] == [
    'crd',
    'int',
    'ctg',
    'brd',
  ]
  assert lines[4].startswith('  int: interested in')
  assert lines[7:9] == [
    '  1 purchases before it, newest first; 1 read',
    '    2021-01-04 00:00  item i1: rose mascara |  | Acme',
  ]
  assert lines[10] == 'closes 2021-01-24 00:00, serves from then on'
  assert lines[14] == '  brd: unknown'
  assert len(lines) == 17
  (newest,) = [k for k, line in enumerate(lines) if 'i2' in line]
  assert newest == 16


def test_purchases_that_were_not_read_are_counted(make_log, tmp_path):
  log = make_log([(1, 1, k) for k in range(60)], facet_answers.TITLES)
  facet_bank.build(rules(), log, str(tmp_path), lambda line: None)
  lines = show(log, tmp_path, 'u1')
  assert '  60 purchases before it, newest first; 50 read' in lines
  assert sum('item i1' in line for line in lines) == 60


def test_nobody_and_nothing(log, tmp_path):
  with pytest.raises(InputError, match=r"--user: 'u9' .* 3 users, such as u1"):
    show(log, tmp_path, 'u9')
  with pytest.raises(InputError, match='not there yet.*--mode=facets'):
    show(log, tmp_path, 'u1')
