"""The HTTP interface: answers, refusals, limits, and what it says of itself."""

from concurrent import futures
import contextlib
import json
import threading
import time as time_lib

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from dynllm_jax.serving import http_bodies
from dynllm_jax.serving.service import MAX_K
from dynllm_jax.types import InputError
from tests.serving.conftest import served
from tests.testing import live_runs

JSON = {'content-type': 'application/json'}
EVENT = {'user': 'u1', 'item': 'b3', 'time': live_runs.START + 10**8}


def state(client):
  """What a refused request must not change."""
  asked = {'requests': [{'user': f'u{n}', 'k': 30} for n in range(24)]}
  return (
    client.get('/health/ready').json(),
    client.post('/recommendations', json=asked).json(),
    client.get('/users/u1').json(),
  )


def test_an_event_is_acknowledged_and_changes_answers(server, client):
  before = client.get('/recommendations/u1', params={'k': 30}).json()
  last = before['items'][-1]['item']
  shop = server.app.ready.recommender
  event = {'user': 'u1', 'item': last, 'time': shop.newest_time + 60}
  position = shop.position
  answer = client.post('/events', json=event)
  assert answer.status_code == 200
  assert answer.json() == {
    **{'events': 1, 'new_users': 0, 'new_items': 0, 'late': 0, 'repeats': 0},
    'position': position + 1,
  }
  after = client.get('/recommendations/u1', params={'k': 30}).json()
  assert after['items'] != before['items']
  assert client.get('/users/u1').json()['purchases'][0] == {
    'item': last,
    'title': shop.title(last),
    'time': event['time'],
  }


def test_an_event_that_is_sent_again_counts_once(client):
  event = {**EVENT, 'id': 'order 1', 'time': EVENT['time'] + 10**5}
  assert client.post('/events', json=event).json()['events'] == 1
  before = state(client)
  again = client.post('/events', json=event).json()
  assert (again['events'], again['repeats']) == (0, 1)
  other = client.post('/events', json={**event, 'item': 'b4'})
  assert other.status_code == 409
  assert 'the id of another event' in other.json()['error']
  assert state(client) == before


def test_a_follower_takes_in_no_events(server):
  with served(contextlib.nullcontext(), follows=True) as follower:
    for path in ('/events', '/items'):
      answer = follower.client.post(
        path, json=EVENT if path == '/events' else {'item': 'b1'}
      )
      assert answer.status_code == 409
      assert 'follows a journal' in answer.json()['error']


def test_answers_are_the_recommender_s(server, client):
  shop = server.app.ready.recommender
  asked = {'k': 4, 'exclude_seen': True, 'category': 'Toys', 'exclude': 'b2'}
  answer = client.get('/recommendations/u3', params=asked).json()
  wanted = shop.recommend(
    'u3', k=4, exclude_seen=True, categories=['Toys'], exclude=['b2']
  )
  assert [one['item'] for one in answer['items']] == wanted.items
  assert [one['title'] for one in answer['items']] == wanted.titles
  assert [one['score'] for one in answer['items']] == wanted.scores.tolist()
  assert answer['known']
  assert not client.get('/recommendations/nobody').json()['known']

  alike = client.get('/items/b3/similar', params={'k': 3}).json()
  assert [one['item'] for one in alike['items']] == shop.similar_items(
    'b3', 3
  ).items
  assert client.get('/items', params={'text': 'gARDEN tWINE'}).json()['ids']
  found = client.get('/users', params={'begin': 'U2'}).json()['ids']
  assert sorted(found) == ['u2', 'u20', 'u21', 'u22', 'u23']


def test_a_guest_is_answered_as_if_observed_and_forgotten(server, client):
  before = state(client)
  visits = [{'item': 'b3', 'time': EVENT['time'] + 10**6}]
  asked = {'requests': [{'session': visits, 'k': 30}, {'user': 'u1', 'k': 2}]}
  guest, user = client.post('/recommendations', json=asked).json()['answers']
  assert (guest['known'], user['known']) == (False, True)
  assert state(client) == before

  event = {'user': 'once a guest', **visits[0]}
  assert client.post('/events', json=event).json()['new_users'] == 1
  answer = client.get('/recommendations/once a guest', params={'k': 30})
  assert answer.json()['items'] == guest['items']


def test_a_new_item_can_be_recommended_next(server, client):
  # None of the description's examples, which another test may have sent.
  item = {'item': 'l1', 'title': 'Desk lamp', 'category': 'Lamps'}
  assert client.post('/items', json=item).json()['new_items'] == 1
  found = client.get('/recommendations/u1', params={'category': 'Lamps'}).json()
  assert [one['title'] for one in found['items']] == ['Desk lamp']


@pytest.mark.parametrize(
  'path, status, words',
  [
    ('/recommendations/u1?k=0', 422, 'query.k'),
    ('/recommendations/u1?k=29999', 422, 'query.k'),
    (f'/recommendations/u1?k={MAX_K}', 422, 'the number of items'),
    ('/recommendations/u1?k=three', 422, 'query.k'),
    ('/recommendations/u1?time=7', 422, 'the newest event'),
    ('/recommendations/u1?time=99999999999', 422, 'not in the future'),
    ('/recommendations/u1?category=Cars', 422, "no item is of 'Cars'"),
    (f'/recommendations/{"u" * 1025}', 422, 'path.user'),
    ('/recommendations/u%001', 422, 'path.user'),
    ('/items/gone/similar', 404, "there is no item 'gone'"),
    ('/items/b1/similar?k=0', 422, 'query.k'),
    ('/users/u1?last=0', 422, 'query.last'),
    ('/nothing', 404, 'there is no /nothing'),
    ('/events', 405, 'Method Not Allowed'),
  ],
)
def test_a_question_that_is_not_allowed(client, path, status, words):
  answer = client.get(path)
  assert answer.status_code == status, answer.text
  assert words in answer.json()['error']


def many(count):
  return [EVENT] * count


@pytest.mark.parametrize(
  'body, status, words',
  [
    (b'', 422, 'body'),
    (b'{', 400, 'no JSON'),
    (b'\xff\xfe', 400, 'no JSON'),
    (b'[' * 5000, 400, 'no JSON'),
    (b'x' * (5 << 20), 413, 'too large'),
    ([], 422, 'at least 1'),
    (many(http_bodies.MAX_EVENTS + 1), 422, 'at most 10000'),
    ('u1', 422, 'body'),
    ({**EVENT, 'colour': 'red'}, 422, 'body.colour'),
    ({**EVENT, 'user': None}, 422, 'body.user'),
    ({**EVENT, 'user': ''}, 422, 'body.user'),
    ({**EVENT, 'item': 'b\0'}, 422, 'body.item'),
    ({**EVENT, 'time': -1}, 422, 'body.time'),
    ({**EVENT, 'time': 10**11}, 422, 'events[0].time'),
    ({**EVENT, 'time': 10**30}, 422, 'body.time'),
    ({**EVENT, 'time': 1.5}, 422, 'body.time'),
    ({**EVENT, 'title': 7}, 422, 'body.title'),
    ([EVENT, {**EVENT, 'time': 10**11}], 422, 'events[1].time'),
    ([EVENT, {}], 422, 'body[1].user'),
  ],
)
def test_events_that_are_refused_change_nothing(client, body, status, words):
  before = state(client)
  content = body if isinstance(body, bytes) else json.dumps(body).encode()
  answer = client.post('/events', content=content, headers=JSON)
  assert answer.status_code == status, answer.text
  assert words in answer.json()['error']
  assert state(client) == before


@pytest.mark.parametrize(
  'request_, words',
  [
    ({}, 'a "user", or the "session"'),
    ({'user': 'u1', 'session': [{'item': 'b1', 'time': 5}]}, 'allowed: a "u'),
    ({'session': []}, 'session'),
    ({'session': [{'item': 'gone', 'time': 5}]}, "no item 'gone'"),
    ({'session': [{'item': 'b1', 'time': 5}], 'time': 9}, 'not for a guest'),
    ({'user': 'u1', 'k': 400}, 'requests[1]: k: 400'),
    ({'user': 'u1', 'candidates': ['gone']}, 'candidates[0]'),
  ],
)
def test_one_bad_request_of_a_batch(client, request_, words):
  asked = {'requests': [{'user': 'u2'}, request_]}
  answer = client.post('/recommendations', json=asked)
  assert answer.status_code == 422
  assert words in answer.json()['error']


def test_a_body_must_be_declared_as_json(client):
  for headers in ({}, {'content-type': 'text/plain'}):
    answer = client.post('/events', content=json.dumps(EVENT), headers=headers)
    assert answer.status_code == 415


def test_another_site_cannot_call_it_by_a_name_of_its_own(run, server):
  with served(contextlib.nullcontext(), hosts=('localhost',)) as other:
    headers = {'host': 'evil.example'}
    assert other.client.get('/', headers=headers).status_code == 400
    headers = {'host': 'localhost:8000'}
    assert other.client.get('/', headers=headers).status_code == 200


def test_the_token_is_asked_for():
  token = 'sixteen-or-more-letters'
  with served(contextlib.nullcontext(), token=token) as guarded:
    client = guarded.client
    for given in (
      {},
      {'authorization': f'Bearer {token}x'},
      {'authorization': token},
    ):
      del client.headers['authorization']
      answer = client.post('/events', json=EVENT, headers=given)
      assert answer.status_code == 401
      assert answer.headers['www-authenticate'] == 'Bearer'
      assert client.get('/metrics', headers=given).status_code == 401
      assert client.get('/health/live', headers=given).status_code == 200
      client.headers['authorization'] = f'Bearer {token}'
    assert client.get('/metrics').status_code == 200


def test_before_it_is_ready_and_after_a_failure():
  may_fail = threading.Event()

  @contextlib.contextmanager
  def failing():
    may_fail.wait()
    raise InputError('no such run')
    yield

  stopped = threading.Event()
  with served(failing(), on_failure=stopped.set) as server:
    while server.client.get('/health/live').status_code != 200:
      time_lib.sleep(0.02)
    for path in ('/health/ready', '/recommendations/u1', '/users'):
      answer = server.client.get(path)
      assert answer.status_code == 503 and answer.headers['retry-after'] == '1'
    may_fail.set()
    assert stopped.wait(10)
    assert 'no such run' in str(server.app.failure)


def test_too_many_requests_are_refused_at_once(server, client, monkeypatch):
  """A queue of four: what is accepted is answered, the others change nothing.

  Nothing is answered while the test holds the lock of the state.
  """
  service = server.app.ready
  shop = service.recommender
  for queue in (service.reads, service.writes):
    monkeypatch.setattr(queue, '_limit', 4)
  time = shop.newest_time + 60
  events = [{**EVENT, 'time': time + n, 'id': f'many {n}'} for n in range(12)]
  calls = [
    *(lambda e=e: client.post('/events', json=e) for e in events),
    *(lambda n=n: client.get(f'/recommendations/u{n}') for n in range(12)),
  ]
  before = len(shop.purchases('u1', 1000))
  shop._lock.acquire()
  with futures.ThreadPoolExecutor(24) as threads:
    try:
      asked = [threads.submit(call) for call in calls]
      # Four writes wait, four questions, and those that are being answered.
      while sum(one.done() for one in asked) < 24 - 4 - 4 - 4:
        time_lib.sleep(0.01)
      done = [one.result() for one in asked if one.done()]
      assert {answer.status_code for answer in done} == {429}
    finally:
      shop._lock.release()
    found = [one.result() for one in asked]

  assert {answer.status_code for answer in found} == {200, 429}
  assert [answer.status_code for answer in found[:12]].count(200) == 4
  refused = next(a for a in found if a.status_code == 429)
  assert refused.headers['retry-after'] == '1'
  assert 'too many requests wait' in refused.json()['error']
  assert len(shop.purchases('u1', 1000)) == before + 4


def test_metrics_count_routes_and_statuses(client):
  client.get('/items/gone/similar')
  client.get('/nothing/at/all')
  text = client.get('/metrics').text
  assert 'route="/items/{item}/similar",status="404"' in text
  assert '/nothing' not in text
  assert 'dynllm_items ' in text and 'dynllm_journal_position ' in text


def test_the_description_is_kept(server, client, request):
  """schemathesis makes requests of the description, good ones and bad.

  The description cannot say that a time must not be in the future, nor how many
  items there are, so that what it allows may still be refused.
  """
  thorough = request.config.getoption('all_combinations')
  schema = schemathesis.openapi.from_url(f'{server.url}/openapi.json')

  names = []
  for operation in schema.get_all_operations():
    operation = operation.ok()
    names.append(operation.label)

    @hypothesis.settings(
      max_examples=400 if thorough else 4,
      derandomize=True,
      database=None,
      deadline=None,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def keeps(case):
      case.call_and_validate(excluded_checks=[positive_data_acceptance])

    keeps()
  assert 'POST /events' in names and len(names) > 8
