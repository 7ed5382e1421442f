"""`--mode=recommend`: files for all users, and questions line by line."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from dynllm_jax import main
from dynllm_jax import Recommender
from dynllm_jax.runs.command_line import Command
from dynllm_jax.serving import recommend_mode
from dynllm_jax.types import InputError


@pytest.fixture(scope='module')
def shop(run):
  return Recommender.restore(str(run), journal=None)


def command(run, **fields):
  return Command(config=None, workdir=str(run), mode='recommend', **fields)


def asked(shop, *lines):
  """The answers to lines, which may be JSON values or bytes."""
  text = b''.join(
    (line if isinstance(line, bytes) else json.dumps(line).encode()) + b'\n'
    for line in lines
  )
  answers = io.StringIO()
  recommend_mode.stream(shop, io.BytesIO(text), answers)
  return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_files_hold_what_recommend_says(run, shop, tmp_path):
  files = [tmp_path / f'all.{kind}' for kind in ('parquet', 'csv', 'jsonl')]
  for file in files:
    recommend_mode.run(command(run, k=3, exclude_seen=True, output=str(file)))

  wanted = shop.recommend(shop.users, k=3, exclude_seen=True)
  for table in (pd.read_parquet(files[0]), pd.read_csv(files[1])):
    assert list(table) == recommend_mode.SCHEMA.names
    assert table.user.tolist() == [u.user for u in wanted for _ in u.items]
    assert table['rank'].tolist() == [
      rank + 1 for u in wanted for rank in range(len(u.items))
    ]
    assert table['item'].tolist() == [i for u in wanted for i in u.items]
    assert table.title.tolist() == [t for u in wanted for t in u.titles]
    scores = np.concatenate([u.scores for u in wanted])
    np.testing.assert_allclose(table.score, scores, rtol=1e-6)
  lines = [json.loads(line) for line in files[2].read_text().splitlines()]
  assert [line['user'] for line in lines] == list(shop.users)
  assert [line['items'] for line in lines] == [u.items for u in wanted]


def test_a_failure_leaves_the_old_file(run, tmp_path):
  file = tmp_path / 'all.csv'
  file.write_text('old')
  with pytest.raises(InputError, match='k: 99 is not allowed'):
    recommend_mode.run(command(run, k=99, output=str(file)))
  assert file.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [file]


def test_users_of_a_file_and_of_the_command_line(run, tmp_path, capsys):
  (tmp_path / 'users.txt').write_text('u3\n\nnobody\n')
  assert not main.main(
    [
      'main',
      '--mode=recommend',
      f'--workdir={run}',
      f'--users=@{tmp_path}/users.txt',
      '--k=2',
      '--time=2030-01-31T18:00',
    ]
  )
  out, err = capsys.readouterr()
  lines = [json.loads(line) for line in out.splitlines()]
  assert [line['user'] for line in lines] == ['u3', 'nobody']
  assert [len(line['items']) for line in lines] == [2, 2]
  assert '1 of 2 users are not known' in err


@pytest.mark.parametrize(
  'fields, error',
  [
    ({'output': 'all.xlsx'}, "--output: 'all.xlsx' is not allowed; allowed: a"),
    ({'time': 'soon'}, "--time: 'soon' is not allowed"),
    ({'users': ' ,'}, "--users: ' ,' is not allowed"),
    ({'users': '@gone.txt'}, "--users: 'gone.txt' cannot be read"),
    ({'stream': True, 'output': 'a.csv'}, '--output is not for --stream'),
  ],
)
def test_what_is_not_allowed_is_named(run, fields, error):
  with pytest.raises(InputError) as caught:
    recommend_mode.run(command(run, **fields))
  assert error in str(caught.value)


def test_lines_are_answered_in_order_and_bad_ones_change_nothing(run, tmp_path):
  shop = Recommender.restore(str(run), journal=str(tmp_path / 'a.sqlite'))
  newest = shop.newest_time
  event = {'user': 'u1', 'item': 'b2', 'time': newest + 60}
  before = shop.recommend('u1').items
  bad = [
    b'{"recommend": ',
    b'\xff',
    b'[' * 100_000,
    b'{"observe": {"user": "u1", "item": "b1", "time": NaN}}',
    [],
    {},
    {'delete': {}},
    {'recommend': {'user': 'u1'}, 'score': {}},
    {'recommend': {}},
    {'recommend': {'user': 'u1', 'users': ['u1']}},
    {'recommend': {'user': 'u1', 'many': 3}},
    {'recommend': {'user': 'u1', 'k': 0}},
    {'recommend': {'user': 'u1', 'k': 31}},
    {'recommend': {'user': 'u1', 'k': True}},
    {'recommend': {'user': 'u1', 'time': 5}},
    {'recommend': {'user': 'u1', 'exact': 1}},
    {'recommend': {'user': 'u1', 'candidates': 'b1'}},
    {'recommend': {'user': 'u1', 'candidates': ['gone']}},
    {'score': {'user': 'u1', 'items': ['gone']}},
    {'score': {'user': 'u1'}},
    {'similar_items': {'item': 'gone'}},
    {'observe': [event, {**event, 'time': newest + 10**10}]},
    {'observe': [event, {**event, 'item': ''}]},
    {'observe': 'u1'},
  ]
  answers = asked(shop, *bad)
  assert [answer.get('line') for answer in answers] == [
    number + 1 for number in range(len(bad))
  ]
  assert all(answer['error'] for answer in answers)
  assert shop.position == 0 and shop.recommend('u1').items == before

  good = asked(
    shop,
    {'recommend': {'user': 'u1', 'k': 3}},
    b'',
    {'observe': {**event, 'id': 'order 1'}},
    b'nonsense',
    {'recommend': {'users': ['u1', 'nobody'], 'k': 3, 'exclude': ['b2']}},
    {'score': {'user': 'u1', 'items': ['b3', 'b4']}},
    {'similar_items': {'item': 'b3', 'k': 2}},
    {'add_items': [{'item': 'b77', 'title': 'Spoon'}]},
    {'observe': {**event, 'id': 'order 1'}},
  )
  assert [next(iter(answer)) for answer in good] == [
    *('recommend', 'observe', 'error', 'recommend', 'score'),
    *('similar_items', 'add_items', 'observe'),
  ]
  assert good[2]['line'] == 4  # the empty line counts
  assert good[0]['recommend']['known']
  assert len(good[0]['recommend']['items']) == 3
  assert good[1]['observe']['events'] == 1
  assert [one['known'] for one in good[3]['recommend']] == [True, False]
  assert good[7]['observe']['repeats'] == 1
  assert len(good[4]['score']['scores']) == 2
  assert good[6]['add_items']['new_items'] == 1
  assert shop.title('b77') == 'Spoon'
